"""Documents for people: their length, their links, and the picture that a script draws."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [p.relative_to(ROOT) for pattern in ("*.md", "docs/*.md", "*/README.md", "benchmarks/*.md") for p in ROOT.glob(pattern)]


def test_figures_fit_a_few_pages():
    assert len((ROOT / "benchmarks" / "RESULTS.md").read_text().splitlines()) <= 400


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#|mailto:", target):
            assert (ROOT / page.parent / target.partition("#")[0]).exists(), f"{page} links to {target}"


def test_readme_is_for_people():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_data_flow_picture_is_what_the_script_draws():
    spec = importlib.util.spec_from_file_location("draw_data_flow", ROOT / "docs" / "draw_data_flow.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    assert script.OUT.read_text() == script.draw(), "run python docs/draw_data_flow.py"
    for step in script.STEPS:
        assert not step.package or (ROOT / step.package.partition(",")[0]).is_dir(), step


def test_the_walk_leads_to_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("## Where things are")[1].split("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and "`" in row]
    assert len(rows) >= 10
    for path in re.findall(r"`([\w.]+/[\w/.]+\.(?:py|md|yaml|txt))`", text):
        assert (ROOT / path).is_file(), path
