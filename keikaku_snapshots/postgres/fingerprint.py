"""The schema as names and definitions, its digest, and a readable difference of two.

Read from the catalog and not from a dump, whose text holds a random key.
Owners and grants are left out: they are no part of the schema that rows fit into.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keikaku_snapshots.postgres.fingerprint_queries import QUERIES
from keikaku_snapshots.postgres.session_settings import catalog_search_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The schema of a database at one moment."""

    #: SHA-256 of every object's name and definition; equal schemas of one major version have equal digests.
    digest: str
    #: Major version of the server; definitions are worded differently by others.
    major: int
    #: Definitions by kind and name, such as "column public.staffs.email".
    objects: dict[str, str] = field(repr=False)

    @property
    def names_digest(self) -> str:
        """SHA-256 of names and column types alone, which holds across major versions."""
        return names_and_types(self.objects)

    def same_schema(self, other: Fingerprint) -> bool:
        """Compare by definition within one major version, by names and types otherwise.

        Args:
            other: Another database's fingerprint.

        Returns:
            True if rows of one fit into the other without a thought.
        """
        if self.major == other.major:
            return self.digest == other.digest
        return self.names_digest == other.names_digest


#: Long texts come between these two characters and are kept as a hash.
_LONG = re.compile("\x02(.*?)\x03", re.DOTALL)


def fingerprint(connection: Connection) -> Fingerprint:
    """Read the schema of a database; one to five milliseconds for a few tables.

    Args:
        connection: The database, whose transaction is used where there is one.

    Returns:
        Digest and definitions; objects of ours and members of extensions are left out.
    """
    with catalog_search_path(connection):
        # One round trip; prepared only where the connection allows it (1 ms in place of 5).
        with connection.pipeline():
            cursors = [connection.execute(query, prepare=True) for query in QUERIES]
        rows = [row for cursor in cursors for row in cursor.fetchall()]
    objects = {key: stable(text or "") for key, text in rows}
    objects = dict(sorted(objects.items()))
    return Fingerprint(
        digest=_digest(objects), major=connection.info.server_version // 10_000, objects=objects
    )


def _digest(objects: Mapping[str, str]) -> str:
    hasher = hashlib.sha256()
    for key, text in sorted(objects.items()):
        hasher.update(f"{key}\0{text}\n".encode())
    return hasher.hexdigest()


#: `status IN ('a', 'b')` on a varchar column is worded in one way when it was typed
#: and in another once it has been through a dump; both mean the same.
_VARCHAR_LIST = re.compile(
    r"\(ARRAY\[(?P<items>'(?:[^']|'')*'::character varying(?:, '(?:[^']|'')*'::character varying)*)\]\)"
    r"::text\[\]"
)
_VARCHAR_ITEM = re.compile(r"'(?:[^']|'')*'::character varying")


def stable(definition: str) -> str:
    """Word a definition as it is after a dump and restore.

    Args:
        definition: What the server prints.

    Returns:
        The same for an original and its restored copy.
    """

    def each_item(match: re.Match[str]) -> str:
        return f"ARRAY[{_VARCHAR_ITEM.sub(lambda item: f'({item.group(0)})::text', match['items'])}]"

    worded = _VARCHAR_LIST.sub(each_item, definition)
    return _LONG.sub(lambda long: hashlib.sha256(long.group(1).encode()).hexdigest()[:24], worded)


#: Kinds whose mere names are compared across major versions.
_NAMED_KINDS = (
    "table",
    "view",
    "materialized view",
    "function",
    "procedure",
    "enum",
    "domain",
    "sequence",
    "index",
)


def names_and_types(objects: Mapping[str, str]) -> str:
    """Digest names and column types alone, for servers of different major versions.

    Args:
        objects: Definitions by kind and name.

    Returns:
        SHA-256 in hex.
    """
    return _digest(portable(objects))


def portable(objects: Mapping[str, str]) -> dict[str, str]:
    """Keep names and column types alone, which every major version words alike.

    Args:
        objects: Definitions by kind and name.

    Returns:
        What `names_and_types` digests.
    """
    kept: dict[str, str] = {}
    for key, text in objects.items():
        if key.startswith("column "):
            kept[key] = _column_type(text)
        elif key.startswith("enum "):
            kept[key] = text
        elif key.startswith(tuple(f"{kind} " for kind in _NAMED_KINDS)):
            kept[key] = ""
    return kept


_COLUMN_EXTRAS = re.compile(r" (COLLATE|NOT NULL|GENERATED|DEFAULT|STATISTICS|STORAGE|COMPRESSION|WITH )")


def _column_type(definition: str) -> str:
    return _COLUMN_EXTRAS.split(definition, maxsplit=1)[0]


def difference(old_objects: Mapping[str, str], new_objects: Mapping[str, str]) -> list[str]:
    """Say in lines what changed between two schemas.

    Args:
        old_objects: Definitions of the one, such as a snapshot's.
        new_objects: Definitions of the other, such as the database's now.

    Returns:
        Lines sorted by object, such as ``table public.staffs: column email:
        character varying(255) → text``; empty if there is no difference.
    """
    lines: list[tuple[str, str]] = []
    for key in sorted({*old_objects, *new_objects}):
        before, after = old_objects.get(key), new_objects.get(key)
        if before == after:
            continue
        lines += [(_sort_key(key), line) for line in _changed(key, before, after, old_objects, new_objects)]
    return [line for _, line in sorted(lines)]


def _sort_key(key: str) -> str:
    return _table_of_column(key) if key.startswith("column ") else key


def _table_of_column(key: str) -> str:
    return "table " + key.removeprefix("column ").rpartition(".")[0]


def _changed(
    key: str, before: str | None, after: str | None, old: Mapping[str, str], new: Mapping[str, str]
) -> list[str]:
    if key.startswith("column "):
        return _changed_column(key, before, after, old, new)
    if before is None:
        return [f"new {key}"]
    if after is None:
        return [f"{key} is gone"]
    if "columns " in before and "columns " in after:
        before, after = _without_new_columns(before, after)
        if before == after:
            return []
    return [f"{key}: {before or '(nothing)'} → {after or '(nothing)'}"]


def _without_new_columns(before: str, after: str) -> tuple[str, str]:
    """Leave out the column lists unless only their order differs; columns have their own lines."""
    old_head, _, old_columns = before.rpartition("columns ")
    new_head, _, new_columns = after.rpartition("columns ")
    if sorted(old_columns.split(", ")) == sorted(new_columns.split(", ")):
        return before, after
    return old_head.rstrip("; "), new_head.rstrip("; ")


def _changed_column(
    key: str, before: str | None, after: str | None, old: Mapping[str, str], new: Mapping[str, str]
) -> list[str]:
    body = key.removeprefix("column ")
    relation, _, column = body.rpartition(".")
    kinds = ("table", "foreign table", "view", "materialized view", "composite type")
    kind = next(
        (kind for kind in kinds if f"{kind} {relation}" in new or f"{kind} {relation}" in old), "table"
    )
    owner = f"{kind} {relation}"
    if owner not in old or owner not in new:
        return []  # the line of the table says it
    if before is None:
        needed = after is not None and needs_value(after)
        return [f"{owner}: new column {column} {after}" + (" without default" if needed else "")]
    if after is None:
        return [f"{owner}: column {column} is gone"]
    return [f"{owner}: column {column}: {before} → {after}"]


def needs_value(definition: str) -> bool:
    """Tell whether a column refuses rows that do not name it.

    Args:
        definition: A column's definition as in `Fingerprint.objects`.

    Returns:
        True for NOT NULL without default, identity or expression.
    """
    return " NOT NULL" in definition and " DEFAULT " not in definition and " GENERATED " not in definition
