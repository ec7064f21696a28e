# ruff: noqa: INP001 - a module of the script generate_reference.py, which stands beside it
"""The page of errors and exit codes: the classes, what each says to people, and the first users' list.

The texts are those that the acceptance tests have recorded (`tests/messages.py`): each was said by
the program when its fault was brought about, and a test fails when it says something else.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots import errors
from tests import messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
#: The tests of the list, which is made from their names and docstrings.
ERROR_LIST = ROOT / "tests" / "acceptance" / "test_error_list.py"
_PREFIX = "test_item_"
#: Texts of one kind of error that are shown with it; the list below shows more.
_EXAMPLES = 3


def page() -> str:
    """Return the page of errors and exit codes."""
    recorded = messages.recorded()
    lines = [
        "# Errors and exit codes",
        "",
        "Every error of the library is a `KeikakuError` and also the builtin error that a caller would",
        "expect. Its text says what happened, what was found and where, and what to do. At the command",
        'line it decides the exit code; with `--json` it is one document `{"error": …}` on stdout.',
        "Codes never change their meaning, and any other code than 0 is a failure.",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | `diff`: the sides differ; `perf`: too slow; `patch audit verify`: the log was changed |",
        *(f"| {code} | {meaning} |" for code, meaning in sorted(_codes().items())),
        "| 130 | interrupted by Ctrl-C (128 and the number of the signal) |",
        "| 141 | the reader of the output has left (SIGPIPE) |",
        "| 143 | stopped by SIGTERM; 129 by SIGHUP |",
        "",
        "The texts below were said by the program, with `KEIKAKU_LANG=ja`, when the tests brought the error",
        "about; names, numbers and paths that differ from run to run are replaced.",
        "",
        "## The errors",
        "",
    ]
    for kind, depth in _tree(errors.KeikakuError, 0):
        lines += _section(kind, depth, [one for one in recorded.values() if one.error == kind.__name__])
    lines += [
        "## The error list of the first users",
        "",
        "What they had written down of the program that they had before, and the rule now. Each has a test",
        "of its name in `tests/acceptance/test_error_list.py`.",
        "",
    ]
    for test in _items():
        lines += _item(test, recorded)
    return "\n".join(lines).rstrip() + "\n"


def _codes() -> dict[int, str]:
    found: dict[int, str] = {}
    for kind, _ in _tree(errors.KeikakuError, 0):
        # The first class of a code is the parent of the others.
        found.setdefault(kind.exit_code, _first_sentence(kind))
    return found


def _tree(kind: type[errors.KeikakuError], depth: int) -> Iterator[tuple[type[errors.KeikakuError], int]]:
    yield kind, depth
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


def _first_sentence(kind: type) -> str:
    text = (kind.__doc__ or "").split("\n\n", maxsplit=1)[0]
    return " ".join(text.split()).rstrip(".")


def _section(kind: type[errors.KeikakuError], depth: int, said: Sequence[messages.Message]) -> list[str]:
    parents = ", ".join(f"`{parent.__name__}`" for parent in kind.__bases__)
    lines = [f"### {kind.__name__}" if depth else f"### {kind.__name__} (the root)", ""]
    lines += [_first_sentence(kind) + ".", ""]
    term = f" · shown with （{kind.term}）" if kind.term else ""
    lines += [f"Exit code {kind.exit_code} · is a {parents}{term}", ""]
    lines += [f"- To fix this: {kind.default_hint}", f"- 対処: {kind.hint_ja}", ""]
    for message in said[:_EXAMPLES]:
        lines += _block(message)
    return lines


def _block(message: messages.Message) -> list[str]:
    return ["```text", *message.lines, "```", ""]


def _items() -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(ERROR_LIST.read_text(encoding="utf-8"))
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(_PREFIX)
    ]


def _item(test: ast.FunctionDef | ast.AsyncFunctionDef, recorded: dict[str, messages.Message]) -> list[str]:
    number, _, words = test.name.removeprefix(_PREFIX).partition("_")
    complaint, _, rule = inspect.cleandoc(ast.get_docstring(test) or "").partition("\n\n")
    lines = [f"### {int(number)} · {words.replace('_', ' ')}", "", *complaint.splitlines(), ""]
    lines += [*rule.splitlines(), ""]
    for key in messages.keys_in(test):
        lines += _block(recorded[key])
    return lines
