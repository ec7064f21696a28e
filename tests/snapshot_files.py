"""Snapshots made of a few letters, for tests of what happens to files."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.snapshots.manifest import Manifest
from keikaku_snapshots.snapshots.names import suffix_of
from keikaku_snapshots.snapshots.part_files import hash_parts
from keikaku_snapshots.snapshots.parts import digest_of, to_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.store import SnapshotStore

#: Later than any file that a test makes, so that leftovers are old at once.
NOW = datetime(2100, 1, 2, 3, 4, 5, tzinfo=UTC)


def write(
    store: SnapshotStore,
    content: str,
    version: str | None = None,
    *,
    overwrite: bool = False,
    name: str = "app",
    **facts: Any,
) -> Snapshot:
    """Make a version with the given content the way the manager does.

    Args:
        store: Where.
        content: What the data file holds.
        version: Its version; the next one when it is left out.
        overwrite: Replace the version.
        name: The snapshot's name.
        facts: Further fields of the manifest.
    """
    fields: dict[str, Any] = {"created_at": store.clock(), "format": "plain", **facts}
    with store.writing(name), store.stage(name, suffix_of(fields["format"])) as stage:
        os.write(stage.fileno(), content.encode())
        manifest = Manifest(
            name=name,
            version=version or store.next_version(name),
            data_file="unset",
            size_bytes=len(content.encode()),
            sha256=hashlib.sha256(content.encode()).hexdigest(),
            **fields,
        )
        return store.publish(stage, manifest, overwrite=overwrite)


def write_parts(
    store: SnapshotStore,
    parts: Mapping[str, str | bytes],
    version: str | None = None,
    *,
    overwrite: bool = False,
    name: str = "app",
    **facts: Any,
) -> Snapshot:
    """Make a version of the directory format with the given parts the way the manager does.

    Args:
        store: Where.
        parts: Content of each part, by its file name.
        version: Its version; the next one when it is left out.
        overwrite: Replace the version.
        name: The snapshot's name.
        facts: Further fields of the manifest.
    """
    with store.writing(name), store.stage(name, suffix_of("directory")) as stage:
        for part, content in parts.items():
            (stage.path / part).write_bytes(content if isinstance(content, bytes) else content.encode())
        listing = hash_parts(stage.fileno())
        whole = digest_of(listing)
        manifest = Manifest(
            name=name,
            version=version or store.next_version(name),
            created_at=store.clock(),
            data_file="unset",
            size_bytes=whole.size_bytes,
            sha256=whole.sha256,
            format="directory",
            parts=to_manifest(listing),
            **facts,
        )
        return store.publish(stage, manifest, overwrite=overwrite)
