"""`keikaku checkpoint` and `keikaku rewind` as people call them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run as run_command
from tests.integration.test_rewind import SHOP, run, state

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from keikaku_snapshots.postgres.url import DatabaseURL


def _call(url: DatabaseURL, directory: Path, *arguments: str) -> int:
    common = ["--db-url", url.text, "--snapshot-dir", str(directory)]
    return run_command(keikaku, [arguments[0], *common, *arguments[1:]], "keikaku")


def test_checkpoint_change_rewind_drop(
    shared_database: DatabaseURL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DESIGN: `checkpoint`, `rewind` and `checkpoint --drop`, with one JSON document each."""
    run(shared_database, SHOP)
    before = state(shared_database)
    assert _call(shared_database, tmp_path, "checkpoint", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tables"] == 2
    run(shared_database, "DELETE FROM offices")
    assert _call(shared_database, tmp_path, "rewind", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tables"], told["rows"], told["path"]) == (2, 80, "replica")
    assert state(shared_database) == before
    assert _call(shared_database, tmp_path, "checkpoint", "--drop", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"dropped": True}
    assert _call(shared_database, tmp_path, "rewind") == 10
    assert "has no checkpoint" in capsys.readouterr().err


def test_options_that_contradict_are_refused(
    shared_database: DatabaseURL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 before anything is touched."""
    assert _call(shared_database, tmp_path, "checkpoint", "--drop", "--snapshot", "x") == 2
    assert _call(shared_database, tmp_path, "checkpoint", "--version", "1") == 2
    assert "--version needs --snapshot" in capsys.readouterr().err


def test_checkpoints_are_audited_and_rewinds_are_not(shared_database: DatabaseURL, tmp_path: Path) -> None:
    """A checkpoint changes the schema; rewinds run thousands of times between tests and undo test work."""
    run(shared_database, SHOP)
    with SnapshotManager(shared_database, tmp_path) as manager:
        manager.create_snapshot("shop")
        manager.checkpoint(snapshot="shop")
        manager.rewind()
        manager.drop_checkpoint()
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    done = [(line["action"], line["name"]) for line in lines if line["outcome"] == "done"]
    assert done == [("create", "shop"), ("checkpoint", "shop"), ("drop checkpoint", None)]
