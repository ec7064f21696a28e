"""docs/performance.md tells what was measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import peers_page
from benchmarks.peers_restore import DSLR, SPARE, WARM

DOCS = Path(__file__).parents[2] / "docs"


def _document() -> peers_page.Document:
    document: peers_page.Document = json.loads((DOCS / "performance.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("name", ["performance.md", "performance.svg"])
def test_the_page_is_what_the_command_makes_of_the_samples(name: str, tmp_path: Path) -> None:
    """A number on the page is never older or better than the JSON that is checked in beside it."""
    peers_page.write(_document(), tmp_path)

    assert (tmp_path / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")


def test_the_chart_is_an_image() -> None:
    """A browser reads it, and a bar is drawn for each contestant."""
    root = ET.fromstring((DOCS / "performance.svg").read_text(encoding="utf-8"))  # noqa: S314
    contestants = sum(len(part["samples"]) for part in _document()["parts"].values())

    bars = root.findall("{http://www.w3.org/2000/svg}rect")

    assert len(bars) == contestants + 1  # the background


def test_a_missed_bar_is_on_the_page() -> None:
    """A comparison that is lost is printed like one that is won."""
    samples = {SPARE: [1.0, 1.0], WARM: [2.1, 1.9], DSLR: [2.0, 2.0]}
    facts = dict.fromkeys(
        ("postgresql", "fsync", "file_system", "cores", "system", "python", "DSLR", "django-dbbackup",
         "pytest-postgresql", "measured_at", "load_average", "runs"), "-"
    )  # fmt: skip
    facts["runs"] = "2"
    document = {"parts": {"gigabyte": {"facts": facts, "samples": samples}}}

    found = {bar.ours: (bar.ratio, bar.holds) for bar in peers_page.bars(document)}

    assert found == {WARM: (1.0, False), SPARE: (0.5, False)}
    assert peers_page.page(document).count("MISSED") == 2
    assert "Fewer than 5 runs" in peers_page.page(document)


def test_the_data_sets_of_an_unmeasured_tool_judge_nothing() -> None:
    """Without the other tools there is no ratio to claim."""
    document = {"parts": {"small": {"facts": {}, "samples": {WARM: [1.0]}}}}

    assert peers_page.bars(document) == []
