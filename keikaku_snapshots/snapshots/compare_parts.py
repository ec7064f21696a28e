"""The rows of a directory archive, read from its parts without a program or a temporary file."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.snapshots.archive import file_names
from keikaku_snapshots.snapshots.compare_keys import parse_copy, tables_and_roots
from keikaku_snapshots.snapshots.compare_rows import BLOCK_BYTES, project
from keikaku_snapshots.snapshots.compare_side import Source, in_order
from keikaku_snapshots.snapshots.compression import Unpacked
from keikaku_snapshots.snapshots.part_files import open_part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.postgres.catalog import TableName
    from keikaku_snapshots.snapshots.archive import Contents, Entry
    from keikaku_snapshots.snapshots.compare_rows import Blocks
    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.reading import OpenSnapshot

#: What pg_dump writes behind the rows of a table.
_END: Final = b"\\.\n\n\n"
_COMPRESSIONS: Final = {"": None, ".gz": "gzip"}


def row_files(contents: Contents, present: Mapping[str, object]) -> dict[int, str] | None:
    """Find the file of each entry with rows.

    Args:
        contents: The table of contents.
        present: The files that are there.

    Returns:
        File by the entry's number; None when one is packed in a way that only pg_restore can read.
    """
    found = {}
    for entry in contents.entries:
        if entry.kind == "TABLE DATA":
            name = next((one for one in file_names(entry) if one in present), "")
            if not entry.copy or name.removeprefix(entry.file) not in _COMPRESSIONS:
                return None
            found[entry.id] = name
    return found


def parts_of(
    opened: OpenSnapshot, manifest: Manifest, contents: Contents, files: Mapping[int, str]
) -> dict[TableName, list[Source]]:
    """Find the rows of each table.

    Args:
        opened: The snapshot, held so that nobody deletes it.
        manifest: Its manifest.
        contents: Its table of contents.
        files: From `row_files`.

    Returns:
        The sources of each table; partitions count for their root.
    """
    roots = tables_and_roots(manifest.schema_objects)
    found: dict[TableName, list[tuple[TableName, Source]]] = {root: [] for root in roots.values()}
    for entry in contents.entries:
        target = parse_copy(entry.copy.decode().strip()) if entry.id in files else None
        if target is not None and target[0] in roots:
            table, columns = target
            name = files[entry.id]
            source = _part_source(opened, entry, name, columns)
            sha256, rows = str(manifest.parts[name]["sha256"]), manifest.row_counts.get(table.text)
            found[roots[table]].append((table, replace(source, sha256=sha256, rows=rows)))
    return {root: in_order(sources) for root, sources in found.items()}


def _part_source(opened: OpenSnapshot, entry: Entry, name: str, columns: tuple[str, ...]) -> Source:
    def read(wanted: tuple[str, ...]) -> Blocks:
        positions = tuple(columns.index(column) for column in wanted)
        return project(part_rows(opened, entry, name), positions, len(columns))

    return Source(columns, read)


def part_rows(opened: OpenSnapshot, entry: Entry, name: str) -> Blocks:
    """Read the rows of a table.

    Args:
        opened: The snapshot, held so that nobody deletes it.
        entry: The table's entry.
        name: The file.

    Yields:
        Blocks of whole lines.

    Raises:
        SnapshotCorruptError: The file is cut or damaged.
    """
    place = str(opened.path / name)
    descriptor = open_part(opened.fileno(), name)
    try:
        packed = Unpacked(descriptor, _COMPRESSIONS[name.removeprefix(entry.file)], place)
        rest = b""
        while block := packed.read(BLOCK_BYTES):
            rest += block
            # What could be the end of the rows is held back.
            cut = rest.rfind(b"\n", 0, max(0, len(rest) - len(_END))) + 1
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
    finally:
        os.close(descriptor)
    if not rest.endswith(_END):
        raise SnapshotCorruptError("the rows of a table have no end", found=place)
    if len(rest) > len(_END):
        yield rest[: -len(_END)]
