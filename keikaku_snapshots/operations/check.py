"""Look whether the newest snapshot of a name is fresh and large enough, for monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keikaku_snapshots.errors import StaleError
from keikaku_snapshots.operations.amounts import span

if TYPE_CHECKING:
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot

#: Seconds that the clocks of two machines may differ.
_CLOCK_TOLERANCE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Checked:
    """A snapshot that is as it should be."""

    #: The newest valid one.
    snapshot: Snapshot
    #: Seconds since its data were taken.
    age_s: float
    #: True when the whole file was read and compared with its checksum.
    verified: bool
    #: Newer versions that are damaged, as "version: reason".
    damaged: tuple[str, ...] = ()


def check_snapshot(
    manager: SnapshotManager,
    name: str,
    *,
    max_age_s: float | None = None,
    min_size_bytes: int | None = None,
    verify: bool = False,
    now: datetime | None = None,
) -> Checked:
    """Look at the newest valid snapshot of a name; nothing is changed, no database is needed.

    Args:
        manager: The directory.
        name: Its name.
        max_age_s: Most seconds since its data were taken.
        min_size_bytes: Least bytes of its file.
        verify: Read the whole file too.
        now: Aware time; the clock's if None.

    Returns:
        What was found.

    Raises:
        SnapshotNotFoundError: There is none.
        SnapshotCorruptError: There are only damaged ones, or reading the newest shows damage.
        StaleError: It is too old, too small, or made in the future.
    """
    snapshot = manager.get_snapshot(name)
    age_s = ((now or datetime.now(UTC)) - snapshot.created_at).total_seconds()
    newer = [item for item in manager.list_snapshots(name) if item.sort_key > snapshot.sort_key]
    damaged = tuple(f"{item.version}: {item.problem}" for item in newer if not item.is_valid)
    problems = []
    if max_age_s is not None and age_s > max_age_s:
        problems.append(f"it is {span(age_s)} old, allowed are {span(max_age_s)}")
    if max_age_s is not None and age_s < -_CLOCK_TOLERANCE_S:
        problems.append(
            f"it was made {span(-age_s)} in the future, so its age is not known; check the clocks"
        )
    if min_size_bytes is not None and snapshot.size_bytes < min_size_bytes:
        problems.append(f"it has {snapshot.size_bytes} bytes, expected are at least {min_size_bytes}")
    if problems:
        problems += [f"newer but damaged: {text}" for text in damaged]
        raise StaleError(
            f"the newest valid snapshot {snapshot} is not as it should be",
            found="\n".join(problems),
            snapshot=snapshot,
            age_s=age_s,
        )
    if verify:
        manager.verify_snapshot(name, snapshot.version)
    return Checked(snapshot, age_s, verify, damaged)
