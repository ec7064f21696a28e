"""Reads the commands and files out of the project's Markdown pages, so that tests can run them.

A fenced block's info string says what it is::

    ```console              lines beginning with "$ " are commands, the rest is output
    ```console exit=11      the last command ends with this exit code
    ```python file=conftest.py      a file that later commands use
    ```python run           a program

``<!-- run first: COMMAND -->`` prepares what a page takes for granted, and
``<!-- not run: REASON -->`` before a block leaves it out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- (?P<kind>run first|not run): (?P<text>.*?) -->", re.DOTALL)
#: Languages of blocks that hold something a reader would type.
RUNNABLE = ("console", "bash", "sh", "shell", "python")


@dataclass(frozen=True, slots=True)
class Piece:
    """One thing to do with a page, in the order of the page."""

    #: Run a command, write a file, run a program, or nothing (with a reason in `text`).
    kind: Literal["command", "file", "program", "not run"]
    #: The command, the file's contents, or the program.
    text: str
    #: Line of the page, counted from 1.
    line: int
    #: File name of a "file".
    name: str = ""
    #: Expected exit code of a "command".
    exit_code: int = 0


def pieces(page: Path) -> list[Piece]:
    """Everything on the page that can be typed or saved, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[int, Piece]] = []
    fences = list(_FENCE.finditer(text))
    left_out: set[int] = set()
    for mark in _MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        if mark["kind"] == "run first":
            found.append((mark.start(), Piece("command", mark["text"], line)))
            continue
        following = next((fence for fence in fences if fence.start() > mark.end()), None)
        if following is not None:
            left_out.add(following.start())
            found.append((mark.start(), Piece("not run", mark["text"], line)))
    for fence in fences:
        if fence.start() not in left_out:
            line = text.count("\n", 0, fence.start()) + 1
            found.extend((fence.start(), piece) for piece in _of_fence(fence, line))
    return [piece for _, piece in sorted(found, key=lambda item: item[0])]


def _of_fence(fence: re.Match[str], line: int) -> Iterator[Piece]:
    language, *words = fence["info"].split() or [""]
    options = dict(word.partition("=")[::2] for word in words)
    body = fence["body"]
    if language not in RUNNABLE:
        return
    if "file" in options:
        yield Piece("file", body, line, name=options["file"])
    elif language == "python":
        yield Piece("program", body, line)
    else:
        commands = list(_commands(language, body))
        for position, command in enumerate(commands):
            last = position == len(commands) - 1
            yield Piece("command", command, line, exit_code=int(options.get("exit", 0)) if last else 0)


def _commands(language: str, body: str) -> Iterator[str]:
    if language != "console":
        yield body
        return
    yield from re.findall(r"^\$ (.*(?:\\\n.*)*)$", body, re.MULTILINE)
