"""Which file a template was made from, and whether that snapshot was deleted since.

A template of a snapshot that is gone only takes disk, and holds data that somebody
wanted to be rid of. Whether it is gone can be told only on the host that made the
template, and only of the directory that the file was in.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.templates import Found


def source_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Say where a template comes from, for its mark; the mark itself names the host.

    Args:
        snapshot: What it is made from.

    Returns:
        Place of the file, and its checksum, by which it is known after it was renamed.
    """
    sha256 = snapshot.manifest.sha256 if snapshot.manifest else ""
    return {"file": str(snapshot.path.absolute()), "sha256": sha256}


def of_deleted_snapshots(found: Iterable[Found], directory: Path) -> list[Found]:
    """Find the templates whose snapshot was deleted from a directory.

    Args:
        found: Templates of a server.
        directory: Of the snapshots.

    Returns:
        Those that were made on this host, from a file of this directory that is no longer there, under
        any name. Of others nobody knows here; they go when they are the least recently used.
    """
    place, host = directory.absolute(), socket.gethostname()
    ours = [
        one
        for one in found
        if one.identity.host == host
        and one.identity.extra.get("sha256")
        and Path(str(one.identity.extra.get("file", ""))).parent == place
    ]
    suspects = [one for one in ours if not _is_in_place(one)]
    if not suspects:
        return []
    from keikaku_snapshots.snapshots.store import SnapshotStore

    listed = SnapshotStore(place).list()
    present = {one.manifest.sha256 for one in listed if one.manifest is not None}
    # A manifest that cannot be read may be that of any of them.
    return [] if any(one.manifest is None for one in listed) else [
        one for one in suspects if one.identity.extra["sha256"] not in present
    ]  # fmt: skip


def _is_in_place(one: Found) -> bool:
    """Tell by one small file, because every restore asks; a version that was overwritten has another."""
    file = Path(str(one.identity.extra["file"]))
    try:
        text = file.with_name(f"{file.name}.manifest.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return str(one.identity.extra["sha256"]) in text
