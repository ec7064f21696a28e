"""What a schema, as a fingerprint has it, says about the rows: tables, partitions, keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.catalog import TableName

if TYPE_CHECKING:
    from collections.abc import Mapping

_IDENTIFIER = r'(?:"(?:[^"]|"")+"|[^\s".,();]+)'
_QUALIFIED = re.compile(rf"({_IDENTIFIER})\.({_IDENTIFIER})")
_CONSTRAINT = re.compile(rf"constraint {_IDENTIFIER} on (?P<table>{_IDENTIFIER}\.{_IDENTIFIER})\Z", re.DOTALL)
_KEY = re.compile(
    rf"(?P<kind>PRIMARY KEY|UNIQUE)(?: NULLS NOT DISTINCT)? "
    rf"\((?P<columns>{_IDENTIFIER}(?:, {_IDENTIFIER})*)(?: WITHOUT OVERLAPS)?\)",
    re.DOTALL,
)
_PARENT = re.compile(rf"; inherits ({_IDENTIFIER}\.{_IDENTIFIER})(?:;|\Z)", re.DOTALL)
_COPY = re.compile(
    rf"COPY (?P<table>{_IDENTIFIER}\.{_IDENTIFIER}) "
    rf"(?:\((?P<columns>{_IDENTIFIER}(?:, {_IDENTIFIER})*)\))? ?FROM stdin;\Z",
    re.DOTALL,
)


def parse_table(text: str) -> TableName | None:
    """Read a table's name as the server writes it, ``schema.name`` with quotes where needed.

    Args:
        text: The name.

    Returns:
        The name; None when it has no schema.
    """
    match = _QUALIFIED.fullmatch(text)
    return TableName(_unquoted(match[1]), _unquoted(match[2])) if match else None


def parse_copy(statement: str) -> tuple[TableName, tuple[str, ...]] | None:
    """Read table and columns of the COPY statement of a dump.

    Args:
        statement: ``COPY … FROM stdin;``.

    Returns:
        Both; None when it is none that pg_dump writes.
    """
    match = _COPY.match(statement)
    table = parse_table(match["table"]) if match else None
    if match is None or table is None:
        return None
    return table, _columns(match["columns"] or "")


def tables_and_roots(objects: Mapping[str, str]) -> dict[TableName, TableName]:
    """Tell every table and the table that its rows count for.

    Args:
        objects: Definitions by kind and name.

    Returns:
        The topmost partitioned table for a partition, itself for every other table.
    """
    definitions: dict[TableName, str] = {}
    for key, text in objects.items():
        name = parse_table(key.removeprefix("table ")) if key.startswith("table ") else None
        if name is not None:
            definitions[name] = text
    parents = {name: _partitioned_parent(text, definitions) for name, text in definitions.items()}

    def root(name: TableName) -> TableName:
        parent = parents[name]
        return name if parent is None else root(parent)

    return {name: root(name) for name in definitions}


def _partitioned_parent(text: str, definitions: Mapping[TableName, str]) -> TableName | None:
    """The parent of a partition; an ordinary table cannot inherit from a partitioned one."""
    for match in _PARENT.finditer(text):
        parent = parse_table(match[1])
        if parent is not None and definitions.get(parent, "").startswith("partitioned by "):
            return parent
    return None


def row_keys(objects: Mapping[str, str]) -> dict[TableName, list[tuple[str, ...]]]:
    """Tell which columns identify the rows of each table.

    Args:
        objects: Definitions by kind and name.

    Returns:
        Primary keys first, then unique constraints whose columns are all NOT NULL, the shortest first.
    """
    found: dict[TableName, list[tuple[bool, int, str, tuple[str, ...]]]] = {}
    for key, text in objects.items():
        constraint = _CONSTRAINT.match(key)
        definition = _KEY.match(text) if constraint else None
        table = parse_table(constraint["table"]) if constraint else None
        if constraint is None or definition is None or table is None:
            continue
        is_primary = definition["kind"] == "PRIMARY KEY"
        quoted = re.findall(_IDENTIFIER, definition["columns"])
        if is_primary or all(_is_not_null(objects, constraint["table"], column) for column in quoted):
            columns = tuple(_unquoted(column) for column in quoted)
            found.setdefault(table, []).append((not is_primary, len(columns), key, columns))
    return {table: [one[3] for one in sorted(keys)] for table, keys in found.items()}


def choose_key(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Choose the columns by which the rows of two sides are matched.

    Args:
        before: Keys of the one side, best first.
        after: Keys of the other.

    Returns:
        The best one of the other side that the one side has too; empty if there is none.
    """
    known = {frozenset(key) for key in before}
    return next((key for key in after if frozenset(key) in known), ())


def _is_not_null(objects: Mapping[str, str], table: str, column: str) -> bool:
    return " NOT NULL" in objects.get(f"column {table}.{column}", "").split(" DEFAULT ")[0]


def _columns(text: str) -> tuple[str, ...]:
    return tuple(_unquoted(name) for name in re.findall(_IDENTIFIER, text))


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
