"""The generated pages of docs/reference, seen by a reader, and links between all pages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import keikaku_snapshots
from keikaku_snapshots import SnapshotManager, datasets, perf

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "reference" / "api.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Addresses of the headings of a page, as GitHub makes them; the second of a text gets ``-1``."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in _HEADING.findall(text):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{plain}-{number}" if number else plain) in found:
            number += 1
        found.add(anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """A link inside the repository names a file that exists and a heading that it has."""
    broken = []
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("module", [keikaku_snapshots, datasets, perf], ids=lambda module: module.__name__)
def test_every_public_name_has_a_section(module: object) -> None:
    """What can be imported is on the page of the Python API."""
    text = API.read_text(encoding="utf-8")
    names = set(module.__all__) - {"__version__"}  # type: ignore[attr-defined]

    assert {name for name in names if f"\n### {name}\n" not in text} == set()


def test_every_method_of_the_manager_says_its_parameters_and_errors() -> None:
    """A method of SnapshotManager has a section with its call and all its parameters."""
    text = API.read_text(encoding="utf-8")
    parts = dict(
        re.findall(r"^#### (SnapshotManager\.\w+)\n(.*?)(?=^#{2,4} )", text, re.DOTALL | re.MULTILINE)
    )

    methods = inspect.getmembers(SnapshotManager, inspect.isfunction)
    for name, method in methods:
        if name.startswith("_"):
            continue
        section = parts[f"SnapshotManager.{name}"]
        arguments = method.__code__.co_varnames[
            1 : method.__code__.co_argcount + method.__code__.co_kwonlyargcount
        ]

        assert f"SnapshotManager.{name}(" in section
        assert [a for a in arguments if f"- `{a}`: " not in section] == []


def test_no_entry_of_the_page_is_empty_or_private() -> None:
    """No address of an object, no reference of the typing module, no private name is shown."""
    text = API.read_text(encoding="utf-8")

    assert re.search(r" at 0x|ForwardRef|<class |^#+ .*\b_", text, re.MULTILINE) is None
    assert "``" not in _FENCE.sub("", text)
