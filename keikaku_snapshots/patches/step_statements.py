"""What a step of own SQL may say: its statements one by one, which are refused, and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import PatchRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A literal, a quoted name, a text in dollars, a comment, the end of a statement; block comments nest.
_TOKEN: Final = re.compile(
    r"""
      (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<text>'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*")
    | (?P<dollars>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
    | (?P<comment>--[^\n]*)
    | (?P<block>/\*)
    | (?P<word>[^\W\d]\w*)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK: Final = re.compile(r"/\*|\*/")
_TRANSACTION: Final = frozenset(
    {"abort", "begin", "commit", "end", "prepare", "release", "rollback", "savepoint", "start"}
)
_ALLOWED: Final = frozenset(
    {"delete", "insert", "lock", "merge", "select", "set", "table", "update", "values", "with"}
)
_TEMPORARY: Final = re.compile(r"create (?:local |global )?temp(?:orary)? table\b")
_OUTSIDE: Final = re.compile(r"(?:create|drop|reindex) .*\bconcurrently\b|(?:vacuum|cluster|alter system)\b")


def statements(script: str) -> Iterator[str]:
    """Split a script into its statements, as words in lower case without literals and comments.

    Args:
        script: SQL.

    Yields:
        A statement's words, joined by single spaces.
    """
    words: list[str] = []
    at = 0
    while found := _TOKEN.search(script, at):
        at = found.end()
        if found["block"]:
            at = _end_of_comment(script, at)
        elif found["end"]:
            if words:
                yield " ".join(words)
            words = []
        elif found["word"]:
            words.append(found["word"].lower())
        elif not found["comment"]:
            words.append("?")
    if words:
        yield " ".join(words)


def _end_of_comment(script: str, at: int) -> int:
    depth = 1
    while depth:
        found = _BLOCK.search(script, at)
        if found is None:
            return len(script)
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return at


def check_statements(script: str) -> None:
    """Refuse what a step must not say; nothing of the script has run then.

    Args:
        script: SQL, of one or several statements.

    Raises:
        PatchRefusedError: A statement ends the transaction, changes the schema, or is of a kind whose
            changes are not kept.
    """
    for statement in statements(script):
        first = statement.partition(" ")[0]
        if first in _TRANSACTION:
            raise _refused(
                first,
                "it would end or divide the transaction of the step; the engine commits when all is checked",
            )
        if _OUTSIDE.match(statement):
            raise _refused(first, "it cannot run inside a transaction, so it could not be taken back")
        if first == "set" and "keikaku" in statement:
            raise _refused(first, "it would switch off what keeps the changes")
        if first not in _ALLOWED and not _TEMPORARY.match(statement):
            raise _refused(first, "only rows can be taken back, not changes of the schema and the like")


def _refused(first: str, why: str) -> PatchRefusedError:
    return PatchRefusedError(
        f"a step of a data patch must not run {first.upper()}: {why}",
        found="Nothing of this script was run; the step is rolled back.",
        hint="Use SELECT, INSERT, UPDATE, DELETE and MERGE on the declared tables; change the schema in a "
        "migration.",
        hint_ja="宣言済みテーブルへの SELECT・INSERT・UPDATE・DELETE・MERGE のみを使用し、"
        "スキーマ変更はマイグレーションで行ってください。",
        statement=first.upper(),
    )
