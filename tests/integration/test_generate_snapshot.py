"""Generating and dumping are one piece of work: what is dumped is what was generated."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import socket
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.config import Settings
from keikaku_snapshots.config_schema import RetrySettings
from keikaku_snapshots.datasets import find_dataset, get_scale
from keikaku_snapshots.errors import ConnectError, LockBusyError
from keikaku_snapshots.generate import generate_snapshot
from keikaku_snapshots.postgres.locks import target_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.generate import GeneratedSnapshot
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress

SETTINGS = Settings(minimum_free_mb=1, retry=RetrySettings(attempts=3, wait_min_s=0.01, wait_max_s=0.02))


def run(
    url: DatabaseURL, directory: Path, seed: int = 0, progress: Callable[[Progress], None] | None = None
) -> GeneratedSnapshot:
    """Generate small and snapshot it."""
    with SnapshotManager(url, directory, minimum_free_mb=1) as manager:
        return generate_snapshot(
            manager,
            url,
            find_dataset("keikaku"),
            get_scale("small"),
            settings=SETTINGS,
            seed=seed,
            progress=progress,
        )


def test_nobody_puts_other_rows_between_generating_and_dumping(database: DatabaseURL, tmp_path: Path) -> None:
    """B8: a second run, or a restore, waits or fails; the file holds the rows that its manifest tells of."""
    met: list[str] = []

    def second(progress: Progress) -> None:
        try:
            run(database, tmp_path / "other", seed=2)
        except LockBusyError:
            met.append(progress.step)

    done = run(database, tmp_path / "first", seed=1, progress=second)

    assert {"copy offices", "dump"} <= set(met)
    assert not (tmp_path / "other").exists()
    with target_lock(database), pytest.raises(LockBusyError):
        run(database, tmp_path / "first")
    assert done.snapshot.manifest is not None
    assert done.snapshot.manifest.metadata["seed"] == 1


def test_a_role_that_may_not_enter_the_maintenance_database_is_told_and_goes_on(
    owner_database: DatabaseURL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is there; without it the work is as good as it was, and the warning says what may happen."""
    with pytest.MonkeyPatch.context() as patch:
        defaults = inspect.unwrap(target_lock).__kwdefaults__
        patch.setitem(defaults, "maintenance", "no_such_database")
        caplog.set_level(logging.WARNING)
        done = run(owner_database, tmp_path)

    assert done.snapshot.row_counts["public.offices"] == 10
    assert "without the lock of the database" in caplog.text


def test_a_server_that_refuses_at_first_is_tried_again(database: DatabaseURL, tmp_path: Path) -> None:
    """A10: the lock is the first that asks for a connection."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConnectError, match="Tried 3 times"):
        run(dataclasses.replace(database, port=port), tmp_path)
