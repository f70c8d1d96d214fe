"""Documents for people: their length, their links, and the picture that a script draws."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), ROOT / "benchmarks/RESULTS.md")
]


def test_figures_fit_a_few_pages():
    assert len((ROOT / "benchmarks" / "RESULTS.md").read_text().splitlines()) <= 400


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#|mailto:", target):
            assert (ROOT / page.parent / target.partition("#")[0]).exists(), f"{page} links to {target}"
