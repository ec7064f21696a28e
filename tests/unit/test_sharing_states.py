"""Made, deleted, pruned, renamed or killed in whatever order, each snapshot has all of its parts."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keikaku_snapshots import RetentionPolicy
from keikaku_snapshots.errors import SnapshotExistsError
from keikaku_snapshots.snapshots.prune import prune
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.crash import run_killed
from tests.snapshot_files import NOW, write_parts

if TYPE_CHECKING:
    from datetime import datetime

    from keikaku_snapshots.snapshots.files import FileSystem
    from keikaku_snapshots.snapshots.manifest import Snapshot

NAMES = st.sampled_from(["app", "app2", "other"])
# Three tables, each in one of three states.
TABLES = st.lists(st.sampled_from("abc"), min_size=3, max_size=3)
#: Where syncing costs nothing: no machine dies here.
_MEMORY = next((place for place in ("/dev/shm",) if os.access(place, os.W_OK)), None)
#: Name and version of a snapshot, and the parts that it must have.
Model: TypeAlias = dict[tuple[str, str], dict[str, str]]


class SharedParts(RuleBasedStateMachine):
    """A directory of snapshots beside a model of it."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="keikaku-states-", dir=_MEMORY)) / "snapshots"
        self.model: Model = {}
        self.made = 0

    def teardown(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path.parent)

    def store(self, files: FileSystem | None = None) -> SnapshotStore:
        """Return the store; each snapshot is made a second after the one before."""
        return SnapshotStore(self.path, files=files, grace_s=0, clock=self.now)

    def now(self) -> datetime:
        """Return the time."""
        return NOW + timedelta(seconds=self.made)

    def parts(self, tables: list[str]) -> dict[str, str]:
        """Return the parts of a dump; numbers shift with every dump."""
        rows = {f"{self.made * 10 + n}.dat": f"table {n}: {state}" for n, state in enumerate(tables)}
        return {"toc.dat": f"dump {self.made}", **rows}

    def chosen(self, number: int) -> Snapshot:
        """Return one of the snapshots."""
        found = self.store().list()
        return found[number % len(found)]

    def on_disk(self) -> Model:
        """Return every snapshot, read and checked in full."""
        found: Model = {}
        for snapshot in self.store().list():
            assert snapshot.is_valid, snapshot.problem
            with self.store().reading(snapshot) as opened:
                opened.check()
            found[snapshot.name, snapshot.version] = {
                part.name: part.read_text() for part in snapshot.path.iterdir()
            }
        return found

    @rule(name=NAMES, tables=TABLES, at=st.none() | st.integers(0, 30))
    def create(self, name: str, tables: list[str], at: int | None) -> None:
        """Make one, or die while it is made: then it is there whole, or not at all."""
        self.made += 1
        parts = self.parts(tables)
        if at is None:
            made = write_parts(self.store(), parts, name=name)
            self.model[name, made.version] = parts
            return
        run_killed(lambda files: write_parts(self.store(files), parts, name=name), at)
        new = set(self.on_disk()) - set(self.model)
        self.model |= dict.fromkeys(new, parts)
        assert len(new) <= 1

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 50), at=st.none() | st.integers(0, 15))
    def delete(self, number: int, at: int | None) -> None:
        """Delete any of them, or die on the way: then it is there whole, or not at all."""
        snapshot = self.chosen(number)
        key = (snapshot.name, snapshot.version)
        if at is None:
            self.store().delete(snapshot)
            del self.model[key]
            return
        run_killed(lambda files: self.store(files).delete(snapshot), at)
        if key not in self.on_disk():
            del self.model[key]

    @rule(count=st.integers(1, 3))
    def prune(self, count: int) -> None:
        """Keep the newest of each name."""
        planned = prune(self.store(), RetentionPolicy(keep_last=count))
        for decision in planned.delete:
            del self.model[decision.snapshot.name, decision.snapshot.version]

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 50), new=NAMES)
    def rename(self, number: int, new: str) -> None:
        """Give all of a name another one, when that is free."""
        old = self.chosen(number).name
        if old == new:
            return
        with suppress(SnapshotExistsError):
            self.store().rename(old, new)
            self.model = {
                (new if name == old else name, key): parts for (name, key), parts in self.model.items()
            }

    @rule()
    def sweep(self) -> None:
        """Remove what died."""
        self.store().sweep()
        assert not list(self.path.glob(".*.tmp")) if self.path.exists() else True

    @invariant()
    def everything_is_there(self) -> None:
        """Nothing that should be there is missing or changed, and nothing else is listed."""
        assert self.on_disk() == self.model

    @invariant()
    def everything_is_there_once(self) -> None:
        """Each table's state is on the disk once, and the bytes say so."""
        found = self.store().list()
        inodes: dict[str, set[int]] = {}
        for snapshot in found:
            for part in snapshot.path.iterdir():
                inodes.setdefault(part.read_text(), set()).add(part.stat().st_ino)
        assert all(len(numbers) == 1 for numbers in inodes.values())
        if not list(self.path.glob(".*.tmp")):
            alone = [item for item in found if item.shared_bytes == 0]
            assert all(item.own_bytes + item.shared_bytes == item.size_bytes for item in found)
            assert len(found) != 1 or alone == found


TestSharedParts = SharedParts.TestCase
TestSharedParts.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
