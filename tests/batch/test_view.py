"""The view on a terminal and off it, and the page: what they say, and that names cannot break them."""

import io
import re

from batch.engine_simulated import SimulatedEngine
from batch.page import index_page
from batch.schedule import SceneRun, Schedule
from batch.storage import Storage
from batch.tasks import Outcome, Resources, StageTask
from batch.view import View


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chains(names: str) -> list[SceneRun]:
    one = Resources(1, 0, 0)
    return [SceneRun(n, tuple(StageTask(n, (), i, 2, t, one, "") for i, t in enumerate(("geometry", "3dgs splats"), 1))) for n in names]


def ends(task: StageTask) -> Outcome:
    return Outcome("refused", error="no clip", hint="take another") if task.scene == "b" else Outcome("done", figures={"psnr": 20.5})


def shown(stream: io.StringIO, tmp_path) -> str:
    view = View(Storage(str(tmp_path)), stream)
    engine = SimulatedEngine([Resources(2, 0, 4)], lambda task: 10.0, ends)
    Schedule(chains("abc"), engine, expected={"geometry": 10.0, "3dgs splats": 10.0}, watch=view.show).run()
    view.close()
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(tmp_path):
    told = shown(io.StringIO(), tmp_path)
    assert "\033" not in told
    assert "a: done, 20.50 dB held out" in told and "b: failed in geometry: no clip; take another" in told and "c: 1/2 geometry" in told
    assert re.search(r"0 of 3 scenes done, .* under way, .*about \d+ s left", told)


def test_a_block_that_is_drawn_anew_on_a_terminal(tmp_path):
    told = shown(Terminal(), tmp_path)
    drawn = [int(n) for n in re.findall(r"\033\[(\d+)F\033\[J", told)]
    assert drawn and max(drawn) == 2  # the summary and the scene under way
    assert told.endswith("\033[J")  # nothing is left of it
    assert "a: done, 20.50 dB held out" in told


def test_the_page_escapes_names_and_says_what_failed():
    good, bad = chains("ab")
    good.name, good.state = "<kitchen & co>", "done"
    good.figures = {"psnr": 25.1, "grade": "good", "splats": 12000, "film": "x y/film.mp4", "report": "report.html", "still": "AAAA"}
    bad.state, bad.error, bad.hint = "failed", "geometry: <no clip>", "take another"
    page = index_page([good, bad])
    assert "<kitchen" not in page and "&lt;kitchen &amp; co&gt;" in page
    assert 'src="%3Ckitchen%20%26%20co%3E/x%20y/film.mp4"' in page and 'poster="data:image/jpeg;base64,AAAA"' in page
    assert "&lt;no clip&gt;. take another" in page and "1 of 2 scenes done, 1 failed" in page and "12 000 splats" in page
    assert not re.search(r"\{(title|subtitle|style|script|body)\}", page) and page.count("</style>") == 1
    assert "<script" not in page and "http" not in page.split("</style>", 1)[1]
