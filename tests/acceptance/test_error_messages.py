"""Every other kind of error, brought about by its commonest cause; the texts stand in the reference."""

from __future__ import annotations

import ast
import dataclasses
import errno
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import errors
from keikaku_snapshots.datasets import bulk_create_offices, generate
from keikaku_snapshots.snapshots.files import FileSystem
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests import messages, servers
from tests.integration import schemas
from tests.proxy import Proxy, at_commit_after_it_was_done
from tests.snapshot_files import write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command
    from tests.conftest import MakeDatabase
    from tests.messages import Said
    from tests.servers import Server

TABLE = (
    "CREATE TABLE offices (id integer PRIMARY KEY, name text NOT NULL); INSERT INTO offices VALUES (1, 'a');"
)


@pytest.fixture
def snapshot(command: Command, database: DatabaseURL) -> None:
    """A snapshot "app" of one table."""
    schemas.run(database, TABLE)
    assert command("create", "app")[0] == 0


@pytest.mark.parametrize(
    ("key", "kind", "arguments"),
    [
        ("url", errors.InvalidURLError, ["create", "app", "--db-url", "mysql://u:p@h/d"]),
        ("name", errors.InvalidNameError, ["create", "../app"]),
        ("scale", errors.UnknownScaleError, ["generate", "--scale", "huge"]),
        ("dataset", errors.UnknownDatasetError, ["generate", "--dataset", "kekaku"]),
        ("connect", errors.ConnectError, ["create", "app", "--db-url", "postgresql://u:p@127.0.0.1:1/d"]),
        ("no_snapshot", errors.SnapshotNotFoundError, ["restore", "app"]),
    ],
)
def test_what_was_typed_is_wrong(
    key: str, kind: type[errors.KeikakuError], arguments: list[str], command: Command, said: Said
) -> None:
    """Nothing was touched; what is known or allowed is listed."""
    said(key, command(*arguments), kind, hide={r"port 1\b": "port 5432"})


def test_no_database_is_named(command: Command, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal nothing falls back to an empty database."""
    monkeypatch.delenv("KEIKAKU_DB_URL")
    said("no_database", command("create", "app"), errors.NoDatabaseError)


def test_the_configuration_has_problems(command: Command, said: Said, tmp_path: Path) -> None:
    """All of them at once, with their paths."""
    text = "retry: {attempts: 0}\nminimum_fre_mb: 5\nlatest: link\n"
    (tmp_path / "keikaku.yml").write_text(text, encoding="utf-8")
    said("configuration", command("list"), errors.ConfigurationError)


@pytest.mark.usefixtures("snapshot")
def test_a_session_is_in_the_way(command: Command, said: Said, database: DatabaseURL) -> None:
    """It is named; a restore waits only as long as it is told."""
    with servers.connect(database) as other, other.transaction():
        other.execute("SET application_name = 'web'; SELECT * FROM offices")
        told = command("restore", "app", "--strategy", "in_place", "--lock-timeout", "0.2")
    said(
        "session",
        told,
        errors.DatabaseInUseError,
        hide={r"idle in transaction.*": "idle in transaction, 12 s"},
    )


def test_the_password_is_wrong(command: Command, said: Said, owner_database: DatabaseURL) -> None:
    """It is tried once, and never repeated in a text."""
    wrong = dataclasses.replace(owner_database, password="NotThePassword")
    told = command("create", "app", "--db-url", wrong.text)
    said("password", told, errors.AuthenticationError, hide={owner_database.database: "keikaku_test"})


def test_there_are_no_tools(
    command: Command, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found, where it was looked for, what is needed."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("KEIKAKU_PG_BIN", str(tmp_path / "bin"))
    said("tools_missing", command("create", "app"), errors.ToolMissingError)


def test_the_tools_are_older_than_the_server(
    command: Command, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_dump refuses a newer server; that is known before it is started."""
    found = servers.programs()
    monkeypatch.setenv("KEIKAKU_PG_BIN", str(found[16]))
    hide = {str(found[16]): "/opt/pg16/bin", r"\b(16|18)\.\d+": r"\1.4"}
    said("tools_old", command("create", "app"), errors.ToolVersionError, hide=hide)


@pytest.mark.usefixtures("snapshot")
def test_the_database_looks_like_production(
    command: Command, said: Said, server: Server, make_database: MakeDatabase
) -> None:
    """A whole word of its name says so."""
    live = make_database(server, name=f"app_prod_{os.getpid()}")
    told = command("restore", "app", "--db-url", live.text)
    said("protected", told, errors.ProtectedDatabaseError, hide={live.database: "app_prod"})


@pytest.mark.usefixtures("snapshot")
def test_the_database_is_another_applications(
    command: Command, said: Said, server: Server, make_database: MakeDatabase
) -> None:
    """Fewer than half of the snapshot's tables are there."""
    other = make_database(server)
    schemas.run(other, "CREATE TABLE inventories (id integer)")
    told = command("restore", "app", "--db-url", other.text)
    said("other_database", told, errors.OtherDatabaseError, hide={other.database: "stockrx"})


def test_other_rows_refer_to_test_rows(command: Command, said: Said, database: DatabaseURL) -> None:
    """They are counted, and a cascade never decides."""
    generate("keikaku", "small", database.text, create_tables=True)
    schemas.run(
        database,
        "CREATE TABLE notes (office_id uuid REFERENCES offices ON DELETE CASCADE);"
        "INSERT INTO notes SELECT id FROM offices LIMIT 3",
    )
    said("referenced", command("generate", "--scale", "small"), errors.TestDataReferencedError)


def test_the_database_to_dump_is_empty(command: Command, said: Said) -> None:
    """A failed migration must not push good snapshots out by empty ones."""
    said("empty", command("refresh", "app", "--dump-only"), errors.RefusedError)


@pytest.mark.usefixtures("snapshot")
def test_a_swap_would_lose_a_replication_slot(
    command: Command, said: Said, server: Server, database: DatabaseURL
) -> None:
    """DROP DATABASE would delete it without a word."""
    slot = f"slot_{database.database}"
    with server.admin(database.database) as admin:
        admin.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        told = command("restore", "app", "--strategy", "swap")
        admin.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    said("unsafe", told, errors.UnsafeRestoreError)


@pytest.mark.usefixtures("snapshot")
def test_the_database_is_read_only(
    command: Command, said: Said, server: Server, database: DatabaseURL
) -> None:
    """Found before anything is done."""
    with server.admin() as admin:
        admin.execute(f"ALTER DATABASE {database.database} SET default_transaction_read_only = on")
    said("read_only", command("restore", "app"), errors.AccessDeniedError)


def test_the_server_cannot_read_a_table(
    command: Command, said: Said, server: Server, database: DatabaseURL, make_database: MakeDatabase
) -> None:
    """A broken disk: pg_dump ends in the middle, and nothing is published."""
    schemas.run(database, TABLE)
    broken = make_database(server)
    with server.admin() as admin:
        admin.execute(f"DROP DATABASE {broken.database}")
        # As files, so that no page of it is in the memory of the server.
        admin.execute(f"CREATE DATABASE {broken.database} TEMPLATE {database.database} STRATEGY file_copy")
    with servers.connect(broken) as connection:
        query = "SELECT current_setting('data_directory') || '/' || pg_relation_filepath('offices')"
        ((path,),) = connection.execute(query).fetchall()
    page = bytearray(Path(str(path)).read_bytes())
    page[10:20] = b"\xff" * 10
    Path(str(path)).write_bytes(page)

    told = command("create", "app", "--db-url", broken.text)

    hide = {r'"base/\d+/\d+"': '"base/16384/16390"', broken.database: "keikaku_test"}
    said("create_failed", told, errors.CreateFailedError, hide=hide)
    assert command("list")[1].count("app") == 0


@pytest.mark.usefixtures("snapshot")
def test_the_disk_fails(command: Command, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO while deleting: not told as a snapshot that could not be made, and it is still there."""

    def fail(_: FileSystem, operation: str, path: Path) -> None:
        if operation == "replace" and path.name.endswith(".deleted.tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(FileSystem, "before", fail)
        told = command("delete", "app", "--all", "--yes")
    said("file_operation", told, errors.FileOperationError)
    assert command("verify", "app")[0] == 0


def test_nobody_knows_whether_commit_was_done(database: DatabaseURL, said: Said) -> None:
    """The answer was lost; it is never tried again."""
    generate("keikaku", "small", database.text, create_tables=True)
    with (
        Proxy(database, at_commit_after_it_was_done) as proxy,
        pytest.raises(errors.OutcomeUnknownError) as caught,
    ):
        bulk_create_offices(proxy.url.text, 5)
    said("outcome_unknown", caught.value)
    assert schemas.rows_of(database, "SELECT count(*) FROM offices") == [(15,)]


def test_the_newest_is_too_old(command: Command, said: Said, tmp_path: Path) -> None:
    """For monitoring: the exit code alone says it."""
    moment = datetime.now(UTC) - timedelta(days=3, minutes=5)
    write(SnapshotStore(tmp_path / "snapshots"), "x", f"{moment:%Y%m%d_%H%M%S}", created_at=moment)
    said("stale", command("check", "app", "--max-age", "26h"), errors.StaleError)


def test_some_could_not_be_deleted(
    command: Command, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others were; the reason is said for each that is left."""
    store = SnapshotStore(tmp_path / "snapshots")
    for days in (90, 60, 1):
        moment = datetime.now(UTC) - timedelta(days=days)
        write(store, "x", f"{moment:%Y%m%d_%H%M%S}", created_at=moment)

    before: list[Path] = []

    def stuck(_: FileSystem, operation: str, path: Path) -> None:
        if operation == "replace" and not before:
            before.append(path)
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(FileSystem, "before", stuck)
    said("prune_incomplete", command("prune"), errors.PruneIncompleteError)


@pytest.mark.usefixtures("snapshot")
def test_a_hook_fails(command: Command, said: Said) -> None:
    """The old database stays in place."""
    told = command("restore", "app", "--after-restore", "sh -c 'echo no such revision >&2; exit 3'")
    said("hook", told, errors.HookFailedError)


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("value", errors.DataError, "twelve"),
        ("not_null", errors.NotNullError, None),
        ("check", errors.CheckError, "-1"),
    ],
)
def test_the_server_refuses_a_generated_row(
    key: str, kind: type[errors.DataError], value: str | None, command: Command, said: Said, tmp_path: Path
) -> None:
    """Table, column and batch; nothing is written."""
    (tmp_path / "shop.py").write_text(SHOP.format(value=value), encoding="utf-8")
    told = command("generate", "--dataset", "shop:dataset", "--scale", "small")
    sys.modules.pop("shop", None)
    said(f"refused_{key}", told, kind)


SHOP = """
import sqlalchemy as sa
from keikaku_snapshots.datasets import Dataset, Scale, Table
above_zero = sa.CheckConstraint("price > 0", name="price_above_zero")
price = sa.Column("price", sa.Integer, above_zero, nullable=False)
shops = sa.Table("shops", sa.MetaData(), price, sa.Column("is_test_data", sa.Boolean))
def rows(shard):
    return [("5", "t"), ({value!r}, "t")]
tables = (Table(shops, rows, columns=("price", "is_test_data")),)
dataset = Dataset("shop", tables, scales=(Scale("small", 1),))
"""

#: Classes that are only parents of others, and what is no error of the library.
ABSTRACT = {"KeikakuError", "ToolError"}


def test_every_kind_of_error_has_a_text() -> None:
    """A class without a cause that brings it about is one that nobody has seen."""

    def tree(kind: type[errors.KeikakuError]) -> Iterator[str]:
        yield kind.__name__
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from tree(child)

    shown = {message.error for message in messages.recorded().values()}
    assert set(tree(errors.KeikakuError)) - ABSTRACT == shown


def test_every_recorded_text_is_compared() -> None:
    """A text that no test brings about any more must not stay in the reference."""
    folder = Path(__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("test_*.py")]
    named = {key for tree in trees for key in messages.keys_in(tree)}
    assert set(messages.recorded()) == named
