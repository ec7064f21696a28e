"""Hooks are understood, or refused, before anything is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots import DatabaseURL, SnapshotManager
from keikaku_snapshots.errors import ParameterTypeError, SnapshotNotFoundError, ToolMissingError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

#: Nobody is there: what is refused is refused before a connection is made.
LIVE = DatabaseURL.parse("postgresql://owner:S3cretCanary@nowhere.invalid/app_test")


@pytest.fixture
def manager(tmp_path: Path) -> SnapshotManager:
    """A manager of a database that is not there."""
    return SnapshotManager(LIVE, tmp_path / "snapshots")


@pytest.mark.parametrize(
    ("hooks", "kind", "said"),
    [
        ("alembic upgrade 'head", UsageError, "cannot be split into words"),
        (("",), UsageError, "is empty"),
        (((),), UsageError, "is empty"),
        (("make a && make b",), UsageError, "needs a shell"),
        (("cat < file",), UsageError, "needs a shell"),
        (("no_such_program_here --now",), ToolMissingError, "is not there"),
        (("LANG=C true",), ToolMissingError, "is not there"),
        (("true", "no_such_program_here"), ToolMissingError, "hook 2"),
        ((3,), ParameterTypeError, "neither a command nor a callable"),
        (3, ParameterTypeError, "must be a sequence"),
        (b"true", ParameterTypeError, "must be a sequence"),
        ((("true", 3),), ParameterTypeError, "neither a command nor a callable"),
        (("true\0",), UsageError, "NUL"),
    ],
)
def test_hooks_that_cannot_be_understood_are_refused_before_anything(
    manager: SnapshotManager, hooks: Any, kind: type[Exception], said: str
) -> None:
    """B7: before the snapshot is looked for, so that nothing is half done."""
    with pytest.raises(kind, match=said):
        manager.restore_snapshot("there_is_none", after_restore=hooks)


@pytest.mark.parametrize(
    "command", [r'sh -c "echo \"a\"; echo b | cat"', r"true \; \|", "sh -c 'a && b'", 'sh -c "a > b"'],
)  # fmt: skip
def test_what_is_quoted_is_for_the_program_to_read(manager: SnapshotManager, command: str) -> None:
    """B7: the remedy says ``sh -c '…'``, so that must be taken, with quotation marks inside, too."""
    with pytest.raises(SnapshotNotFoundError):
        manager.restore_snapshot("there_is_none", after_restore=(command,))


@pytest.mark.parametrize(
    "command", ["psql -d {name} -c x", "psql -d{name}", "psql --dbname={name}", "psql {url}", "true x={url}",
                "true 'host=h dbname={name}'"],
)  # fmt: skip
def test_a_command_that_names_the_live_database_is_refused(manager: SnapshotManager, command: str) -> None:
    """B7: `psql -d app -f fix.sql` out of habit would change the database that is to stay."""
    text = command.format(name=LIVE.database, url=LIVE.text)
    with pytest.raises(UsageError, match="names the live database") as caught:
        manager.restore_snapshot("notes", after_restore=(text,))
    assert str(LIVE.password) not in str(caught.value)
    with pytest.raises(SnapshotNotFoundError):  # all that is wrong with a word that is only a word
        manager.restore_snapshot("notes", after_restore=(f"true {LIVE.database}",))


@pytest.mark.parametrize("timeout_s", [0, -1, "3"])
def test_a_time_limit_that_makes_no_sense_is_refused(manager: SnapshotManager, timeout_s: Any) -> None:
    """B7: 0 is not "no limit": that is None."""
    with pytest.raises(UsageError, match="hook_timeout_s"):
        manager.restore_snapshot("notes", hook_timeout_s=timeout_s)


def test_in_place_refuses_hooks(manager: SnapshotManager) -> None:
    """B7: never silently without them."""
    with pytest.raises(UsageError, match="cannot run with strategy='in_place'"):
        manager.restore_snapshot("notes", strategy="in_place", after_restore=("true",))
