"""Which snapshots stay and which go: pure decisions, no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keikaku_snapshots.snapshots.manifest import Snapshot


def old_ones(snapshots: list[Snapshot], keep_count: int) -> list[Snapshot]:
    """Return which snapshots of one name go when ``keep_count`` valid ones are kept, newest first."""
    valid = sorted(
        (item for item in snapshots if item.is_valid), key=lambda item: item.sort_key, reverse=True
    )
    return [item for item in valid[max(1, keep_count) :] if not item.pinned]
