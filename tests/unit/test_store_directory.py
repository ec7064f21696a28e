"""Snapshots whose data is a directory of parts: made, read, found damaged, replaced, renamed, removed."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import NOW, write_parts

if TYPE_CHECKING:
    from pathlib import Path

PARTS = {"toc.dat": "toc one", "3001.dat.gz": "offices", "3002.dat.gz": "staffs"}
FIRST, SECOND = "21000102_030405", "21000102_030405_2"


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A store whose clock stands still and whose leftovers are old at once."""
    return SnapshotStore(tmp_path / "snapshots", grace_s=0, clock=lambda: NOW)


def test_a_stage_for_a_directory_is_an_empty_locked_directory(store: SnapshotStore) -> None:
    """pg_dump fills it; only this account can look into it, and no sweep takes it."""
    with store.stage("app", "dir") as stage:
        assert list(stage.path.iterdir()) == []
        assert stat.S_IMODE(stage.path.stat().st_mode) == 0o700
        assert os.path.samestat(os.fstat(stage.fileno()), stage.path.stat())
        assert store.sweep() == []
    assert not stage.path.exists()


def test_a_directory_becomes_a_snapshot(store: SnapshotStore) -> None:
    """It is listed with the size of its parts, can be read whole, and the link names it."""
    made = write_parts(store, PARTS)

    assert store.list() == [made]
    assert made.is_valid
    assert made.path == store.directory / f"app_{FIRST}.dir"
    assert made.size_bytes == sum(map(len, PARTS.values()))
    assert {path.name: path.read_text() for path in made.path.iterdir()} == PARTS
    assert (store.directory / "app_latest.dir").resolve() == made.path
    with store.reading(made) as opened:
        assert opened.check().size_bytes == made.size_bytes
        assert sorted(os.listdir(opened.fileno())) == sorted(PARTS)


def test_the_checksum_can_be_computed_by_hand(store: SnapshotStore) -> None:
    """The manifest's checksum is that of what sha256sum prints."""
    made = write_parts(store, PARTS)
    done = subprocess.run(
        ["/bin/sh", "-c", "LC_ALL=C sha256sum * | sha256sum"],
        cwd=made.path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert made.manifest
    assert done.stdout.split()[0] == made.manifest.sha256
