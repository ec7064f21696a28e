"""Retention carried out in a directory."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run
from keikaku_snapshots.errors import PruneIncompleteError, UsageError
from keikaku_snapshots.snapshots.files import FileSystem
from keikaku_snapshots.snapshots.prune import prune
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.crash import run_killed
from tests.snapshot_files import write

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.snapshots.manifest import Snapshot

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
LAST_3 = RetentionPolicy(keep_last=3)


def make(store: SnapshotStore, days: list[int], name: str = "app", *, pinned: bool = False) -> list[Snapshot]:
    """Write a version of each age in days, counted from the store's clock."""
    made = []
    for day in sorted(days, reverse=True):
        moment = store.clock() - timedelta(days=day)
        made.append(write(store, "x", f"{moment:%Y%m%d_%H%M%S}", name=name, created_at=moment, pinned=pinned))
    return made[::-1]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A directory whose clock stands still."""
    return SnapshotStore(tmp_path / "snapshots", clock=lambda: NOW)


class TestPrune:
    """What happens to the files."""

    def test_a_dry_run_shows_what_a_run_does(self, store: SnapshotStore) -> None:
        """Design, Retention: the same plan, and the dry run changed nothing."""
        made = make(store, [0, 1, 2, 3, 4])
        planned = prune(store, LAST_3, dry_run=True)
        assert len(store.list()) == 5
        done = prune(store, LAST_3)

        assert planned.delete == done.delete
        assert [decision.snapshot for decision in done.delete] == made[3:]
        assert [item.version for item in store.list()] == [item.version for item in made[:3]]
        assert (planned.dry_run, done.dry_run) == (True, False)

    def test_one_name_only_when_asked(self, store: SnapshotStore) -> None:
        """FAULTS 22: app never touches app2; without a name every name is pruned for itself."""
        make(store, [0, 1, 2])
        make(store, [0, 1, 2], "app2")
        prune(store, RetentionPolicy(keep_last=1), name="app")
        assert [len(store.list(name)) for name in ("app", "app2")] == [1, 3]
        prune(store, RetentionPolicy(keep_last=2))

        assert [len(store.list(name)) for name in ("app", "app2")] == [1, 2]

    def test_a_prune_killed_anywhere_is_ended_by_the_next(self, tmp_path: Path) -> None:
        """FAULTS 49: at every file operation: what is kept is whole, and the next prune ends it."""
        for at in range(60):
            path = tmp_path / str(at)
            made = make(SnapshotStore(path, clock=lambda: NOW), [0, 1, 2, 3])

            def work(files: FileSystem, path: Path = path) -> object:
                return prune(SnapshotStore(path, clock=lambda: NOW, grace_s=0, files=files), LAST_3)

            died = run_killed(work, at)
            store = SnapshotStore(path, clock=lambda: NOW, grace_s=0)
            assert [item for item in store.list() if item.is_valid][:3] == made[:3]
            assert (path / "app_latest.sql").exists()
            prune(store, LAST_3)
            assert store.list() == made[:3]
            assert not list(path.glob(".*.tmp"))
            if not died:
                return
        pytest.fail("the prune never ended")

    def test_one_that_is_being_restored_stays_and_the_others_go(self, store: SnapshotStore) -> None:
        """FAULTS 66: a prune meets a restore; it stays, the plan says why, and nothing failed."""
        made = make(store, [0, 1, 2, 3, 4])
        with store.reading(made[3]):
            done = prune(store, LAST_3)

        assert [decision.snapshot for decision in done.delete] == [made[4]]
        assert done.keep[-1].snapshot == made[3]
        assert "is being read" in done.keep[-1].reasons[0]
        assert [d.snapshot.version for d in prune(store, LAST_3).delete] == [made[3].version]

    def test_a_file_that_cannot_go_is_exit_24_and_the_others_go(self, tmp_path: Path) -> None:
        """Exit codes: 24 when some could not be deleted; the error names them and the rest is done."""

        class Stuck(FileSystem):
            def before(self, operation: str, path: Path) -> None:
                if operation == "replace" and path.name.startswith(".app2."):
                    raise OSError(errno.EIO, "broken", str(path))

        make(SnapshotStore(tmp_path, clock=lambda: NOW), [0, 1, 2])
        make(SnapshotStore(tmp_path, clock=lambda: NOW), [0, 1, 2], "app2")
        store = SnapshotStore(tmp_path, clock=lambda: NOW, files=Stuck())
        with pytest.raises(PruneIncompleteError, match="2 of 4 were deleted") as caught:
            prune(store, RetentionPolicy(keep_last=1))

        assert caught.value.exit_code == 24
        assert "app2 20261119_120000: " in caught.value.found
        assert len(caught.value.details["plan"].delete) == 2
        assert [len(store.list(name)) for name in ("app", "app2")] == [1, 3]
        assert all(item.is_valid for item in store.list())

    def test_leftovers_of_dead_processes_are_swept(self, store: SnapshotStore) -> None:
        """B10: a temporary file that nobody holds goes, a foreign one stays."""
        make(store, [0])
        stale = store.directory / ".app.1.0123456789ab.tmp"
        foreign = store.directory / ".somebody.tmp"
        for path in (stale, foreign):
            path.write_text("half")
            os.utime(path, (0, 0))
        assert prune(store, LAST_3, dry_run=True).swept == (stale,)
        assert stale.exists()

        assert prune(store, LAST_3).swept == (stale,)
        assert not stale.exists()
        assert foreign.exists()

    def test_an_empty_policy_touches_nothing(self, store: SnapshotStore) -> None:
        """Design, Retention: it is an error, also in a directory with nothing in it."""
        for days in ([], [0, 90]):
            make(store, days)
            with pytest.raises(UsageError, match="empty"):
                prune(store, RetentionPolicy())
            assert len(store.list()) == len(days)

    def test_a_missing_directory_is_not_made(self, store: SnapshotStore) -> None:
        """Pruning nothing writes nothing."""
        assert prune(store, LAST_3).keep == ()
        assert not store.directory.exists()

    def test_the_manager_uses_its_policy_or_thirty_days(self, tmp_path: Path) -> None:
        """B10: 30 days are the default; the call's own policy counts before the manager's."""
        make(SnapshotStore(tmp_path), [0, 1, 29, 31])

        def deleted(manager: SnapshotManager, policy: RetentionPolicy | None = None) -> int:
            return len(manager.prune(policy, dry_run=True).delete)

        with SnapshotManager(None, tmp_path) as manager:
            assert deleted(manager) == 1
            assert deleted(manager, RetentionPolicy(keep_last=1)) == 3
        with SnapshotManager(None, tmp_path, retention=RetentionPolicy(keep_last=2)) as manager:
            assert deleted(manager) == 2


@pytest.fixture
def type_(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process, in a directory with five days of snapshots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    make(SnapshotStore(tmp_path / "snapshots"), [0, 1, 2, 3, 40])

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


class TestCommand:
    """`keikaku prune`."""

    def test_a_dry_run_shows_keep_and_delete_with_reasons(
        self, type_: Callable[..., tuple[int, str, str]]
    ) -> None:
        """B10: what goes and why, before it goes."""
        code, out, err = type_("prune", "--keep-last", "2", "--older-than", "2.5", "--dry-run")
        lines = [line.split(None, 1)[0] for line in out.splitlines()[1:]]

        assert code == 0
        assert lines == ["keep"] * 3 + ["delete"] * 2
        assert "not older than 2.5 days" in out
        assert "3.0 days old, and no other rule keeps it" in out
        assert "would delete 2 versions" in err
        assert len(type_("list")[1].splitlines()) == 6

    def test_json_is_the_plan(self, type_: Callable[..., tuple[int, str, str]]) -> None:
        """One document, for a script."""
        document = json.loads(type_("prune", "--keep-last", "2", "--json")[1])

        assert document["dry_run"] is False
        assert [len(document[part]) for part in ("keep", "delete", "swept")] == [2, 3, 0]
        assert document["keep"][0]["reasons"] == ["newest valid version", "one of the last 2"]
        assert {"name", "version", "path", "created_at", "size_bytes", "pinned"} <= set(document["delete"][0])

    def test_quiet_is_silent(self, type_: Callable[..., tuple[int, str, str]]) -> None:
        """For cron: nothing is said when nothing is wrong."""
        assert type_("prune", "-q") == (0, "", "")
        assert len(type_("list")[1].splitlines()) == 5, "40 days old, the default is 30"

    def test_the_configured_policy_counts_without_a_rule(
        self, type_: Callable[..., tuple[int, str, str]]
    ) -> None:
        """B10: `retention:` of the configuration; a rule on the command line replaces all of it."""
        Path("keikaku.yml").write_text("retention: {keep_last: 1, older_than_days: null}\n")

        assert len(json.loads(type_("prune", "--dry-run", "--json")[1])["delete"]) == 4
        assert len(json.loads(type_("prune", "--older-than", "2.5", "--dry-run", "--json")[1])["delete"]) == 2

    def test_an_empty_configured_policy_is_exit_2(self, type_: Callable[..., tuple[int, str, str]]) -> None:
        """Design, Retention: without any rule nothing is deleted."""
        Path("keikaku.yml").write_text("retention: {older_than_days: null}\n")
        code, _, err = type_("prune")

        assert code == 2
        assert "the retention policy is empty" in err
        assert type_("prune", "--min-keep", "3")[0] == 2
        assert type_("prune", "--keep-last", "0")[0] == 2
