"""What `keikaku list`, `show` and `verify` say about snapshots that share parts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.snapshot_files import write, write_parts

if TYPE_CHECKING:
    from pathlib import Path

PARTS = {"toc.dat": "toc one", "3001.dat.gz": "o" * 5000, "3002.dat.gz": "s" * 3000}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    """A directory for snapshots of long ago."""
    return SnapshotStore(tmp_path / "snapshots", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))


def keikaku_says(
    store: SnapshotStore, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run a command; its exit code and what it wrote."""
    code = run(keikaku, [*arguments, "--snapshot-dir", str(store.directory)], "keikaku")
    out, err = capsys.readouterr()
    return code, out, err


def test_a_list_without_shared_parts_has_one_size(
    store: SnapshotStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing more than is worth knowing."""
    write(store, "one")
    write_parts(store, PARTS)
    _, out, _ = keikaku_says(store, capsys, "list")
    assert out.split("\n")[0].split() == [
        "NAME",
        "VERSION",
        "MADE",
        "(UTC)",
        "SIZE",
        "ROWS",
        "FORMAT",
        "STATE",
    ]
    assert "8.0 kB" in out


def test_a_list_with_shared_parts_shows_what_a_deletion_frees(
    store: SnapshotStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """B11: own and shared bytes, in words and in JSON."""
    write_parts(store, PARTS)
    write_parts(store, {**PARTS, "toc.dat": "toc two", "3002.dat.gz": "t" * 2000})
    _, out, _ = keikaku_says(store, capsys, "list")
    head, newest, older = (line.split() for line in out.splitlines()[:3])

    assert head[4:7] == ["SIZE", "OWN", "SHARED"]
    assert newest[4:10] == ["7.0", "kB", "2.0", "kB", "5.0", "kB"]
    assert older[4:10] == ["8.0", "kB", "3.0", "kB", "5.0", "kB"]

    _, out, _ = keikaku_says(store, capsys, "list", "--json")
    assert [(item["own_bytes"], item["shared_bytes"]) for item in json.loads(out)] == [
        (2007, 5000),
        (3007, 5000),
    ]


def test_show_counts_the_parts(store: SnapshotStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Their checksums are for programs; people see how many there are and what they take."""
    write_parts(store, PARTS)
    write_parts(store, {**PARTS, "toc.dat": "toc two"})
    _, out, _ = keikaku_says(store, capsys, "show", "app")
    shown = {line.split(" ")[0]: line.partition(" ")[2].strip() for line in out.splitlines()}

    assert (shown["parts"], shown["own"], shown["shared"]) == ("3", "7 B", "8.0 kB")
    _, out, _ = keikaku_says(store, capsys, "show", "app", "--json")
    assert set(json.loads(out)["manifest"]["parts"]) == set(PARTS)


def test_show_of_a_file_says_nothing_of_parts(
    store: SnapshotStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is all its own."""
    write(store, "one")
    _, out, _ = keikaku_says(store, capsys, "show", "app")
    assert not {"parts", "own", "shared", "own_bytes", "shared_bytes"} & {
        line.split()[0] for line in out.splitlines() if line
    }


def test_what_a_deletion_frees_is_told_as_it_is(
    store: SnapshotStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """B11: shared parts go when the last one goes that has them."""
    for number in range(4):
        write_parts(store, {**PARTS, "toc.dat": f"toc {number}", "3002.dat.gz": str(number // 3) * 3000})
    # Of four the two oldest go; their rows stay with the other two.
    _, _, err = keikaku_says(store, capsys, "prune", "--keep-last", "2", "--dry-run")
    assert "would delete 2 versions (10 B), kept 2" in err
    _, _, err = keikaku_says(store, capsys, "prune", "--keep-last", "2", "--yes")
    assert "deleted 2 versions (10 B), kept 2" in err
    # The older of two has 3 kB of rows that nobody has now, and 5 kB that the newest has too.
    _, _, err = keikaku_says(store, capsys, "prune", "--keep-last", "1", "--yes")
    assert "deleted 1 version (3.0 kB), kept 1" in err
    _, _, err = keikaku_says(store, capsys, "delete", "app", "--all", "--yes")
    assert "(8.0 kB)" in err


def test_what_is_shared_is_not_counted_twice(
    store: SnapshotStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """`doctor` says what the snapshots take on the disk; a deletion says what is its own."""
    write_parts(store, PARTS)
    write_parts(store, {**PARTS, "toc.dat": "toc two"})
    write(store, "x" * 1000, name="plain")
    _, out, err = keikaku_says(store, capsys, "doctor")
    assert "3 whole, 9.0 kB in all" in out + err
    _, _, err = keikaku_says(store, capsys, "delete", "app", "--keep", "1", "--yes")
    assert "(8.0 kB, 7 B its own)" in err
