"""How the texts of errors are written, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from keikaku_snapshots import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[2] / "keikaku_snapshots"
KINDS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.KeikakuError)
}
#: Words with a capital of their own; words in capitals (COPY, SQL) are none of this list.
PROPER_NOUNS = {"Alembic", "Docker", "Linux", "Python", "Windows"}


def _headlines(path: Path) -> Iterator[tuple[int, str]]:
    """Line and beginning of the texts that a module makes errors of."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _is_kind(node.func):
            yield from _beginnings(node.args[0], assigned)
        parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
        if len(parts) > 1 and _is_kind(parts[0]):
            yield from _beginnings(parts[1], assigned)


def _is_kind(node: ast.expr) -> bool:
    return ast.unparse(node).removeprefix("errors.") in KINDS


def _beginnings(node: ast.expr, assigned: dict[str, list[ast.expr]]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, ast.BinOp):
        yield from _beginnings(node.left, assigned)
    elif isinstance(node, ast.IfExp):
        yield from _beginnings(node.body, assigned)
        yield from _beginnings(node.orelse, assigned)
    elif isinstance(node, ast.Name):
        for value in assigned.get(node.id, ()):
            if not isinstance(value, ast.Name):
                yield from _beginnings(value, assigned)


def test_headlines_begin_in_lower_case() -> None:
    """A headline stands behind "error: " and inside other sentences, so it begins in lower case."""
    found = [
        (path.relative_to(PACKAGE), line, text)
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in _headlines(path)
    ]
    first_words = ((path, line, text, text.split(" ")[0]) for path, line, text in found)
    wrong = [
        f"{path}:{line}: {text[:60]}"
        for path, line, text, word in first_words
        if word.istitle() and word not in PROPER_NOUNS
    ]

    assert wrong == []
    assert len(found) > 200, "the test reads the package"


def test_headlines_end_without_a_full_stop() -> None:
    """What was found and what to do follow on lines of their own; the headline is no sentence of a text."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {text[-60:]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in _headlines(path)
        if text.endswith(".") and not text.endswith("…")
    ]

    assert wrong == []
