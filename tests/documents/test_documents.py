"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest
import tables
from common import ROOT

import export
from datasets import parquet
from training import lr_range

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tests" / "campaigns" / "README.md",
]
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
SCRIPT = re.compile(r"\bpython ((?:\w+/)*\w+\.py)\b")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_named_scripts_are_there(path: Path) -> None:
    text = path.read_text()
    for link in LINK.findall(text):
        if not link.startswith(("http:", "https:")):
            assert (path.parent / link.split("#")[0]).exists(), link
    for script in SCRIPT.findall(text):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_code(path: Path) -> None:
    text = path.read_text()
    assert tables.renewed(text) == text, "python tests/support/tables.py writes them anew"


def test_the_readme_is_a_page() -> None:
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 150
    assert len(text.encode()) <= 14_000
    prose = [line for line in lines if not line.startswith(("|", "    "))]
    assert max(len(line) for line in prose) <= 120


def test_every_page_is_in_the_readme_and_every_campaign_in_its_list() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name}" in readme
    listed = (ROOT / "tests" / "campaigns" / "README.md").read_text()
    for path in (ROOT / "tests" / "campaigns").glob("*.py"):
        assert path.name == "test_campaigns.py" or f"`{path.name}`" in listed, path.name


FIGURES = {
    r"At most (\d+) MB of groups are kept": ("datasets.md", lambda: parquet.MAX_CACHE >> 20),
    r"A worker keeps at most (\d+) MB of Parquet": ("speed.md", lambda: parquet.MAX_CACHE >> 20),
    r"the images, at most (\d+), set the ranges": ("export.md", lambda: export.RANGED),
    r"trains at most (\d+) steps at rates": ("training.md", lambda: lr_range.MAX_STEPS),
}


@pytest.mark.parametrize("form", FIGURES)
def test_figures_are_those_of_the_code(form: str) -> None:
    name, value = FIGURES[form]
    found = re.search(form, (ROOT / "docs" / name).read_text())
    assert found, name
    assert int(found[1]) == value()
