# ruff: noqa: INP001 - a module of the script generate_reference.py, which stands beside it
"""Google docstrings and ``#:`` comments, taken apart and written as Markdown."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Headings that end the text of a Google docstring.
_SECTIONS = ("Args", "Returns", "Yields", "Raises")
_HEADING = re.compile(rf"^({'|'.join(_SECTIONS)}):$")
#: ``NAME: text`` or ``NAME (TYPE): text`` at the beginning of an entry.
_ENTRY = re.compile(r"^(?P<name>\*{0,2}\w+):\s*(?P<text>.*)$")
_CODE = re.compile(r"``(?P<code>[^`]+(?:`[^`]+)*)``|`(?P<name>[^`]+)`")


@dataclass
class Docstring:
    """A docstring in its parts."""

    #: The lines before the first section.
    text: list[str] = field(default_factory=list)
    #: Entries of each section: a name (empty for Returns and Yields) and what is said of it.
    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def entries(self, section: str) -> dict[str, str]:
        """What a section says of each name."""
        return dict(self.sections.get(section, ()))


def parse(text: str | None) -> Docstring:
    """Take a docstring apart.

    Args:
        text: As Python holds it, indented.

    Returns:
        Its parts.
    """
    found = Docstring()
    section = ""
    for line in inspect.cleandoc(text or "").splitlines():
        heading = _HEADING.match(line)
        if heading:
            section = heading[1]
            found.sections[section] = []
        elif not section:
            found.text.append(line)
        elif line.strip():
            _add(found.sections[section], line.removeprefix("    "), named=section in {"Args", "Raises"})
    while found.text and not found.text[-1]:
        found.text.pop()
    return found


def _add(entries: list[tuple[str, str]], line: str, *, named: bool) -> None:
    entry = _ENTRY.match(line) if named else None
    if entry:
        entries.append((entry["name"].lstrip("*"), entry["text"]))
    elif entries:
        name, text = entries[-1]
        entries[-1] = (name, f"{text} {line.strip()}")
    else:
        entries.append(("", line.strip()))


def markdown(lines: list[str], link: Callable[[str], str | None]) -> list[str]:
    """Write the text of a docstring as Markdown.

    Args:
        lines: Its lines; an indented block after ``::`` is code.
        link: The address of a name, or None.

    Returns:
        The lines of Markdown.
    """
    found: list[str] = []
    code: list[str] = []
    expected = False
    for line in [*lines, "."]:
        if code or (expected and line.startswith("    ")):
            if line.startswith("    ") or not line:
                code.append(line)
                continue
            # "py" and not "python": pieces of a docstring are no programs that the document tests run.
            found += ["```py", *textwrap.dedent("\n".join(code)).strip("\n").splitlines(), "```", ""]
            code, expected = [], False
        if line.endswith("::"):
            expected = True
            line = line.removesuffix("::") + (":" if line.removesuffix("::") else "")  # noqa: PLW2901
            if not line:
                continue
        if not line and found and not found[-1]:
            continue
        found.append(inline(line, link))
    found.pop()
    return found


def inline(text: str, link: Callable[[str], str | None]) -> str:
    """Write one line of a docstring as Markdown: names become links, code stays code."""

    def replaced(match: re.Match[str]) -> str:
        if match["code"]:
            return f"`{match['code']}`"
        address = link(match["name"])
        return f"[`{match['name']}`]({address})" if address else f"`{match['name']}`"

    return _CODE.sub(replaced, text)


def comments(source: str) -> dict[str, str]:
    """The ``#:`` comment above each assignment of a module or a class.

    Args:
        source: Its source text.

    Returns:
        What is said of each name.
    """
    source = textwrap.dedent(source)
    lines = source.splitlines()
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if not isinstance(target, ast.Name) or not isinstance(node, ast.AnnAssign | ast.Assign):
            continue
        words: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.strip().startswith("#:"):
                break
            words.insert(0, line.strip().removeprefix("#:").strip())
        if words:
            found.setdefault(target.id, " ".join(words))
    return found
