"""The 26 errors that the first users had listed, each brought about, with what happens now.

The name of a test is the number and the words of the list; its docstring says what was wrong,
then the rule. `docs/reference/errors.md` shows both, with the texts that the test records.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.cli.progress import lines
from keikaku_snapshots.datasets import (
    Dataset,
    Scale,
    Table,
    Timeouts,
    bulk_create_offices,
    bulk_create_staffs,
    generate,
)
from keikaku_snapshots.errors import (
    AuditError,
    ConnectError,
    DatabaseInUseError,
    DiskFullError,
    ForeignKeyError,
    JSONCorruptError,
    LockBusyError,
    MemoryLimitError,
    OperationTimeoutError,
    ParameterTypeError,
    RestoreFailedError,
    SchemaDriftError,
    SnapshotCorruptError,
    SnapshotExistsError,
    SnapshotInUseError,
    SnapshotNotFoundError,
    UniqueError,
    UsageError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests import servers
from tests.integration import schemas
from tests.proxy import Proxy, after_bytes
from tests.snapshot_files import write
from tests.waiting import until_somebody_waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from tests.acceptance.conftest import Command, SmallDisk
    from tests.messages import Said
    from tests.servers import Server

ROOT = Path(__file__).parents[2]
#: Tries without the usual waiting.
QUICK = RetryPolicy(attempts=3, wait_min_s=0.01, wait_max_s=0.02)

OFFICES = """
CREATE TABLE offices (
  id integer PRIMARY KEY, name text NOT NULL, preferences jsonb, is_test_data boolean NOT NULL DEFAULT true
);
INSERT INTO offices VALUES (1, '本物の事業所', NULL, false), (2, 'テスト事業所', '{"email": true}', true);
"""
#: Some megabytes, so that something can happen in the middle.
MANY = OFFICES + "INSERT INTO offices SELECT i, repeat('x', 400), NULL FROM generate_series(3, 5000) AS i;"
NAMES = "SELECT name FROM offices ORDER BY id"


def keikaku(*arguments: str, url: DatabaseURL, directory: Path, **variables: str) -> subprocess.Popen[str]:
    """Start ``keikaku`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "keikaku_snapshots", *arguments],
        cwd=directory,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "KEIKAKU_DB_URL": url.text,
            "KEIKAKU_MINIMUM_FREE_MB": "1",
            **variables,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> int:
    """Wait for the end and give the exit code; negative for a signal."""
    process.communicate(timeout=60)
    return process.returncode


def versions(directory: Path) -> list[tuple[str, bool]]:
    """What is listed, newest first: version and whether it is whole."""
    with SnapshotManager(None, directory) as manager:
        return [(item.version, item.is_valid) for item in manager.list_snapshots()]


def test_item_01_partial_write(
    database: DatabaseURL, command: Command, small_disk: SmallDisk, said: Said, tmp_path: Path
) -> None:
    """A run that was killed or had no more room left half a file, which looked like a snapshot.

    Now a snapshot appears whole, with its checksum, or not at all; what a killed run left is no
    snapshot for any command and is removed by the next one, and the earlier one stays usable.
    """
    schemas.run(database, MANY)
    assert command("create", "app")[0] == 0
    before = versions(tmp_path / "snapshots")

    told = small_disk.run_limited("create", "app", file_kb=500)
    said("partial_write", (told[0], "", told[2]), DiskFullError, hide={r"(?m)^  pg_dump.*$": "  pg_dump: …"})
    assert versions(tmp_path / "snapshots") == before

    with servers.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE offices IN ACCESS EXCLUSIVE MODE")
        killed = keikaku("create", "app", url=database, directory=tmp_path)
        until_somebody_waits(database)
        os.killpg(killed.pid, signal.SIGKILL)
        ended(killed)
    assert versions(tmp_path / "snapshots") == before
    assert command("restore", "app")[0] == 0


@pytest.mark.parametrize("strategy", ["in_place", "swap"])
def test_item_02_partial_restore(
    strategy: str, database: DatabaseURL, tmp_path: Path, said: Said, server: Server
) -> None:
    """A restore that was interrupted left some tables old and some new.

    Now it is all or nothing: whatever happens before COMMIT, the database is as it was.
    """
    schemas.run(database, MANY)
    with SnapshotManager(database.text, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("app")
    schemas.run(database, "DELETE FROM offices WHERE id > 2; UPDATE offices SET name = '変更後'")
    with (
        Proxy(database, after_bytes(1_000_000)) as proxy,
        SnapshotManager(proxy.url.text, tmp_path / "snapshots", minimum_free_mb=1) as manager,
        pytest.raises(RestoreFailedError) as caught,
    ):
        manager.restore_snapshot("app", strategy=strategy)

    assert proxy.cuts == 1
    said(f"partial_restore_{strategy}", caught.value, hide={SERVER_IS_GONE: "  server closed the connection"})
    assert schemas.rows_of(database, NAMES) == [("変更後",), ("変更後",)]


#: How libpq tells of a lost connection hangs on the moment.
SERVER_IS_GONE = r"(?m)^  (?:consuming|could not|server closed|sending|lost synch).*(?:\n  \t.*)*"


@pytest.mark.asyncio
async def test_item_03_bulk_insert_not_rolled_back(database: DatabaseURL) -> None:
    """Offices stayed behind when the staff that belonged to them could not be inserted.

    Now each call is all or nothing: in the caller's transaction it goes back to a savepoint and
    leaves the caller's own work, and nobody commits for the caller.
    """
    generate("keikaku", "small", database.text, create_tables=True)
    schemas.run(database, "ALTER TABLE office_staffs ADD CONSTRAINT full_up CHECK (NOT is_primary) NOT VALID")
    engine = create_async_engine(database.for_sqlalchemy("asyncpg"))
    async with AsyncSession(engine) as session:
        offices = await bulk_create_offices(session, 3)
        with pytest.raises(Exception, match="full_up"):
            await bulk_create_staffs(session, offices, 10)
        await session.commit()
        counts = [
            await session.scalar(sqlalchemy.text(f"SELECT count(*) FROM {table}"))
            for table in ("offices", "staffs", "office_staffs")
        ]
    await engine.dispose()

    assert counts == [13, 101, 100]


def test_item_04_unclear_foreign_key_error(database: DatabaseURL, said: Said) -> None:
    """The driver's text named a constraint and a key, not what to do.

    Now table, batch, constraint and column are named, in words, with 外部キー制約違反 and the remedy;
    the key is in a field of the exception, and the driver's error is its cause.
    """
    generate("keikaku", "small", database.text, create_tables=True)
    nobody = uuid.uuid4()
    with pytest.raises(ForeignKeyError, match="外部キー制約違反") as caught:
        bulk_create_staffs(database.text, [nobody], 10)

    said("foreign_key_office", caught.value)
    assert caught.value.details["constraint"] == "office_staffs_office_id_fkey"
    assert str(nobody) in str(caught.value.details)
    assert isinstance(caught.value.__cause__, psycopg.Error)


def test_item_05_corrupted_json(database: DatabaseURL, command: Command, said: Said, tmp_path: Path) -> None:
    """A file that was cut ended in a traceback of the JSON parser.

    Now it is JSONファイルが破損 with path, line and remedy, found before a row is touched; an older
    version that is whole is restored instead.
    """
    schemas.run(database, OFFICES)
    for _ in range(2):
        assert command("create", "rows", "--scope", "test-data")[0] == 0
    with SnapshotManager(database.text, tmp_path / "snapshots") as manager:
        newest, older = manager.list_snapshots("rows")
        newest.path.write_bytes(newest.path.read_bytes()[:-30])
        said("json_cut", command("verify", "rows", "--version", newest.version), JSONCorruptError)
        (tmp_path / "snapshots" / "hand_v1.json").write_text('{"tables": {"offices": [{"id": 7,]}}')
        said("json_by_hand", command("restore", "hand", "--trust"), JSONCorruptError)
        assert schemas.rows_of(database, NAMES) == [("本物の事業所",), ("テスト事業所",)]
        assert manager.restore_snapshot("rows").snapshot == older


def test_item_06_schema_mismatch_not_noticed(database: DatabaseURL, command: Command, said: Said) -> None:
    """A snapshot of last month's schema was restored without a word.

    Now what differs is said; `--on-schema-mismatch error` refuses, `warn` is the default.
    """
    schemas.run(database, OFFICES + ALEMBIC.format("a1"))
    command("create", "app")
    schemas.run(
        database, "DROP TABLE alembic_version; ALTER TABLE offices ADD COLUMN phone text NOT NULL DEFAULT ''"
    )
    schemas.run(database, ALEMBIC.format("b2"))

    said("schema_drift", command("restore", "app", "--on-schema-mismatch", "error"), SchemaDriftError)
    assert schemas.rows_of(database, "SELECT phone FROM offices") == [("",), ("",)]
    code, _, err = command("restore", "app")
    assert code == 0
    assert "warning: " in err
    assert "phone" in err
    assert "a1 in the snapshot, b2 in the database" in err


ALEMBIC = "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('{}');"


def test_item_07_connection_loss_not_retried(database: DatabaseURL, command: Command, said: Said) -> None:
    """A short outage ended a run of an hour.

    Now what the library owns as a whole is rolled back and tried again, three times in all; after
    COMMIT was sent, never.
    """
    schemas.run(database, MANY)
    cut_dump = b"COPY public.offices"
    with Proxy(database, lambda chunk, _: "cut" if cut_dump in chunk else "pass", cuts=2) as proxy:
        code, _, err = command("create", "app", "--db-url", proxy.url.text)
    assert (code, proxy.cuts) == (0, 2), err

    with Proxy(database, lambda chunk, _: "cut" if cut_dump in chunk else "pass", cuts=9) as proxy:
        told = command("create", "app", "--db-url", proxy.url.text)
    said("connection_lost_dump", told, ConnectError, hide={r"(?m)^  pg_dump.*(?:\n  \t.*)*": "  pg_dump: …"})
    assert proxy.cuts == 3
    assert len(json.loads(command("list", "--json")[1])) == 1


def test_item_08_no_disk_check(
    database: DatabaseURL, command: Command, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk was full after half an hour of writing.

    Now the room is compared with an estimate and a minimum before anything is written.
    """
    schemas.run(database, OFFICES)
    monkeypatch.setenv("KEIKAKU_MINIMUM_FREE_MB", "1000000000")

    told = command("create", "app")

    said("disk_full_estimate", told, DiskFullError)
    assert not list((tmp_path / "snapshots").glob("*app*"))


@pytest.mark.parametrize(
    ("options", "kind", "key"),
    [
        ({"count": 0}, UsageError, "parameter_zero"),
        ({"count": "10"}, ParameterTypeError, "parameter_type"),
        ({"batch_size": -1}, UsageError, "parameter_negative"),
    ],
)
def test_item_09_invalid_parameters(
    options: dict[str, Any], kind: type[UsageError], key: str, database: DatabaseURL, said: Said
) -> None:
    """`count=0` made nothing and said nothing; `count="10"` failed far away.

    Now a `ValueError` or `TypeError` names the parameter and the value, before anything is touched.
    """
    with pytest.raises(kind) as caught:
        bulk_create_offices(database.text, **options)

    said(key, caught.value)
    ((name, value),) = options.items()
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, TypeError if kind is ParameterTypeError else ValueError)


def test_item_10_no_progress_on_long_work(database: DatabaseURL, command: Command) -> None:
    """An hour of silence: nobody knew whether it worked or hung.

    Now there is a bar on a terminal, else a line for each step and at least every ten seconds; the
    library calls a function.
    """
    err = command("generate", "--scale", "small")[2]
    for step in ("copy staffs: 101 rows", "copy support_plan_cycles: 1,000 rows", "dump: "):
        assert step in err
    told: list[Progress] = []
    generate("keikaku", "small", database.text, progress=told.append)
    assert [(one.done, one.finished) for one in told if one.step == "copy offices"][-1] == (10, True)

    said_meanwhile: list[str] = []
    shop = _dataset(lambda: time.sleep(0.6))
    with lines(said_meanwhile.append, interval_s=0.1) as show:
        generate(shop, "small", database.text, create_tables=True, progress=show)
    assert len(said_meanwhile) > 4


def _dataset(pause: Any, name: str = "shops") -> Dataset:
    table = sqlalchemy.Table(
        name,
        sqlalchemy.MetaData(),
        sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
        sqlalchemy.Column("is_test_data", sqlalchemy.Boolean),
    )

    def rows(shard: object) -> Iterator[tuple[str, str]]:
        pause()
        yield "1", "t"

    return Dataset("shop", (Table(table, rows, columns=("id", "is_test_data")),), scales=(Scale("small", 1),))


def test_item_11_one_damaged_file_hides_the_list(
    database: DatabaseURL, command: Command, said: Said, tmp_path: Path
) -> None:
    """One broken file made `list` fail, and with it the restore of all others.

    Now each is listed, the damaged one with the reason, and the newest that is whole is restored.
    """
    schemas.run(database, OFFICES)
    for _ in range(3):
        command("create", "app")
    with SnapshotManager(database.text, tmp_path / "snapshots") as manager:
        cut, broken, whole = manager.list_snapshots()
    cut.path.write_bytes(cut.path.read_bytes()[:100])
    broken.manifest_path.write_text("{")

    code, out, _ = command("list")

    assert code == 0
    assert [line.count("damaged") > 0 for line in out.splitlines() if "app" in line].count(True) == 2
    said("damaged", command("restore", "app", "--version", cut.version), SnapshotCorruptError)
    assert whole.version in command("restore", "app")[2]


def test_item_12_deleting_a_file_in_use(
    database: DatabaseURL, command: Command, said: Said, tmp_path: Path
) -> None:
    """A snapshot was deleted while somebody restored it.

    Now that is refused (使用中のため削除できません), also from another process, and works afterwards.
    """
    schemas.run(database, OFFICES)
    command("create", "app")
    with servers.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE offices IN ACCESS SHARE MODE")
        restoring = keikaku(
            "restore",
            "app",
            "--strategy",
            "in_place",
            "--lock-timeout",
            "60",
            url=database,
            directory=tmp_path,
        )
        until_somebody_waits(database)
        told = command("delete", "app", "--all")
    assert ended(restoring) == 0

    said("in_use", told, SnapshotInUseError)
    assert command("delete", "app", "--all")[0] == 0


def test_item_13_concurrent_creation(
    database: DatabaseURL, command: Command, said: Said, tmp_path: Path
) -> None:
    """Two runs of one name wrote into one file.

    Now the second fails at once and says who works on it, or waits as long as it is told; each
    that is listed is whole, and none has the version of another.
    """
    schemas.run(database, OFFICES)
    with servers.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE offices IN ACCESS EXCLUSIVE MODE")
        first = keikaku("create", "app", url=database, directory=tmp_path)
        until_somebody_waits(database)
        told = command("create", "app")
        others = [
            keikaku("create", "app", "--lock-wait", "60", url=database, directory=tmp_path) for _ in "ab"
        ]
    assert [ended(process) for process in (first, *others)] == [0, 0, 0]

    said("creation_busy", told, LockBusyError, hide={r"since \S+ \S+|on \S+ since.*": "since 03:00"})
    listed = versions(tmp_path / "snapshots")
    assert [is_valid for _, is_valid in listed] == [True] * 3
    assert len({version for version, _ in listed}) == 3


def test_item_14_jsonb_serialization(database: DatabaseURL, command: Command) -> None:
    """`Object of type dict is not JSON serializable`, and what came back was not what had gone in.

    Now dictionaries go into jsonb columns as they are, and a JSON snapshot gives every value back
    letter by letter.
    """
    awkward = [
        '{"日本": ["\\\\", "\\"", "\\n", "\\u0001", null, 1.50, 12345678901234567890.0001, {"深い": {}}]}',
        "null",
        "[]",
        '"\\\\N"',
    ]
    schemas.run(database, OFFICES)
    with servers.connect(database) as connection:
        for number, text in enumerate(awkward, start=10):
            connection.execute("INSERT INTO offices VALUES (%s, 'x', %s)", [number, text])
    before = schemas.rows_of(database, "SELECT id, preferences::text FROM offices ORDER BY id")
    assert command("create", "rows", "--scope", "test-data")[0] == 0
    schemas.run(database, "UPDATE offices SET preferences = '{}'  WHERE is_test_data")
    assert command("restore", "rows")[0] == 0
    assert schemas.rows_of(database, "SELECT id, preferences::text FROM offices ORDER BY id") == before

    generate("keikaku", "small", database.text, create_tables=True, schema="keikaku")
    assert schemas.rows_of(
        database, "SELECT DISTINCT notification_preferences->>'email_threshold_days' FROM keikaku.staffs"
    ) == [("30",)]


_MEASURED = """
import sys
from keikaku_snapshots import SnapshotManager
def peak_mb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1000
with SnapshotManager(sys.argv[1], "snapshots", minimum_free_mb=1) as manager:
    for name in ("small", "large"):
        if name == "large":
            import psycopg
            with psycopg.connect(sys.argv[1]) as connection:
                connection.execute(sys.argv[2])
        manager.create_snapshot(name, scope="test_data", format="json")
        manager.restore_snapshot(name)
        print(peak_mb(), manager.get_snapshot(name).size_bytes / 1e6)
"""


def test_item_15_memory_on_large_data(
    database: DatabaseURL, command: Command, said: Said, tmp_path: Path
) -> None:
    """The whole of the data was in the memory at once.

    Now rows stream both ways, so a hundred times the data takes the same memory, and a limit that
    is configured stops the work with nothing written.
    """
    schemas.run(database, OFFICES)
    more = "INSERT INTO offices SELECT i, repeat('事業所', 300), NULL FROM generate_series(10, 20000) AS i"
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURED, database.text, more],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (small_mb, _), (large_mb, size_mb) = (map(float, line.split()) for line in ran.stdout.splitlines())
    assert size_mb > 50
    assert large_mb - small_mb < 15

    told = command("generate", "--scale", "small", "--memory-limit", "1")
    said("memory_limit", told, MemoryLimitError, hide={r"uses [\d,]+ MB": "uses 95 MB"})


def test_item_16_flush_without_a_time_limit(database: DatabaseURL, said: Said) -> None:
    """`await db.flush()` hung for ever behind somebody's lock.

    Now there is a limit for a lock, for a statement, and for a COPY of which the server takes no
    more; the transaction is rolled back and the message says which limit and what to look at.
    """
    generate("keikaku", "small", database.text, create_tables=True)
    limits = {
        "limit_lock": (DatabaseInUseError, Timeouts(lock_s=0.2)),
        "limit_statement": (OperationTimeoutError, Timeouts(lock_s=None, statement_s=0.3)),
        "limit_stall": (OperationTimeoutError, Timeouts(lock_s=None, stall_s=0.3)),
    }
    with servers.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE offices IN SHARE MODE")
        for key, (kind, timeouts) in limits.items():
            with pytest.raises(kind) as caught:
                bulk_create_offices(database.text, 5, timeouts=timeouts, retry=QUICK)
            said(key, caught.value)

    assert len(bulk_create_offices(database.text, 5)) == 5


def test_item_17_missing_tables_at_restore(database: DatabaseURL, command: Command, said: Said) -> None:
    """A table that was not there was found out half-way through.

    Now missing tables and columns, and new columns that must have a value, are named all at once
    before a row is touched.
    """
    schemas.run(
        database, OFFICES + "CREATE TABLE staffs (id integer, role text, is_test_data boolean DEFAULT true)"
    )
    schemas.run(database, "CREATE TABLE plans (id integer, is_test_data boolean DEFAULT true)")
    schemas.run(database, "INSERT INTO staffs VALUES (1, 'owner'); INSERT INTO plans VALUES (1)")
    command("create", "rows", "--scope", "test-data")
    schemas.run(database, "DROP TABLE plans; ALTER TABLE staffs DROP COLUMN role")
    schemas.run(database, "DELETE FROM offices; ALTER TABLE offices ADD COLUMN kind text NOT NULL")

    told = command("restore", "rows")

    said("missing_tables", told, SchemaDriftError)
    for name in ("plans", "role", "kind"):
        assert name in told[2]
    assert schemas.rows_of(database, "SELECT id FROM staffs") == [(1,)]


def test_item_18_audit_log_failure_unnoticed(
    database: DatabaseURL, command: Command, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit log could not be written for weeks, and nobody knew.

    Now that is a warning which `-q` does not hide, or with `audit: error` a refusal before anything
    is done.
    """
    schemas.run(database, OFFICES)
    (tmp_path / "snapshots" / "audit.log").mkdir(parents=True)
    monkeypatch.setenv("KEIKAKU_AUDIT", "error")
    said("audit", command("create", "app"), AuditError)
    assert versions(tmp_path / "snapshots") == []

    monkeypatch.setenv("KEIKAKU_AUDIT", "warn")
    code, _, err = command("create", "app", "-q")
    assert code == 0
    assert "audit.log" in err


def test_item_19_random_unique_collision(
    database: DatabaseURL, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two random e-mail addresses were equal, and a run of an hour was lost.

    Now values drawn without a seed are drawn anew, up to three times; with a seed they never
    change, so the second call with it fails and says 一意制約違反.
    """
    generate("keikaku", "small", database.text, create_tables=True)
    offices = [row[0] for row in schemas.rows_of(database, "SELECT id FROM offices")]
    draws = iter(["same", "same", "same", "another"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(draws))
    first = bulk_create_staffs(database.text, offices, 2)
    second = bulk_create_staffs(database.text, offices, 2)
    emails = [staff.email for made in (first, second) for staffs in made.values() for staff in staffs]
    assert len(set(emails)) == 40
    assert next(draws, None) is None

    bulk_create_staffs(database.text, offices, 2, seed=1)
    with pytest.raises(UniqueError, match="一意制約違反") as caught:
        bulk_create_staffs(database.text, offices, 2, seed=1)
    said("unique", caught.value)


def test_item_20_session_expiry_on_long_work(
    server: Server, database: DatabaseURL, command: Command, tmp_path: Path
) -> None:
    """The server ended the session in the middle of long work.

    Now the limits that a role has for idle sessions and for the length of a transaction are put
    aside for the library's own work, so that rows may take their time to be made, and the locks
    are held up to the end.
    """
    (tmp_path / "slow_shop.py").write_text(SLOW_SHOP, encoding="utf-8")
    with impatient_role(server, database) as url:
        done = command("refresh", "--dataset", "slow_shop:dataset", "--scale", "small", "--db-url", url.text)
        assert done[0] == 0, done[2]
        done = command("restore", "small_1_units", "--db-url", url.text)
        assert done[0] == 0, done[2]


@contextlib.contextmanager
def impatient_role(server: Server, database: DatabaseURL) -> Iterator[DatabaseURL]:
    """A superuser for whom the server has no patience."""
    role = f"impatient_{database.database}"
    limits = ("idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout")
    with server.admin() as admin:
        admin.execute(
            sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(servers.ROLE_PASSWORD)
            )
        )
        for name in limits:
            admin.execute(f"ALTER ROLE {role} SET {name} = '300ms'")
    yield servers.as_role(database, role)
    with server.admin(database.database) as admin:
        admin.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # the server still drops what the restore replaced
        with contextlib.suppress(psycopg.errors.DependentObjectsStillExist), server.admin() as admin:
            admin.execute(f"DROP ROLE {role}")
            return
        time.sleep(0.05)


SLOW_SHOP = """
import time
import sqlalchemy as sa
from keikaku_snapshots.datasets import Dataset, Scale, Table

def rows(shard):
    time.sleep(0.8)
    yield "1", "t"
    time.sleep(0.8)
    yield "2", "t"

shops = sa.Table("shops", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("is_test_data", sa.Boolean))
dataset = Dataset("shop", (Table(shops, rows, columns=("id", "is_test_data")),), scales=(Scale("small", 1),))
"""


def test_item_21_overwrite_protection(database: DatabaseURL, command: Command, said: Said) -> None:
    """A good snapshot was replaced by mistake.

    Now a version that exists is refused unless `--overwrite` is said, and then replaced only when
    the new one is whole.
    """
    schemas.run(database, OFFICES)
    command("create", "app", "--version", "v1")
    schemas.run(database, "UPDATE offices SET name = '変更後'")

    said("exists", command("create", "app", "--version", "v1"), SnapshotExistsError)
    schemas.run(database, "ALTER TABLE offices ENABLE ROW LEVEL SECURITY")
    assert (
        command(
            "create", "app", "--version", "v1", "--overwrite", "--db-url", "postgresql://x@127.0.0.1:1/x"
        )[0]
        == 12
    )
    assert command("restore", "app")[0] == 0
    assert schemas.rows_of(database, NAMES) == [("本物の事業所",), ("テスト事業所",)]
    schemas.run(database, "UPDATE offices SET name = '変更後'")
    assert command("create", "app", "--version", "v1", "--overwrite")[0] == 0
    schemas.run(database, "DELETE FROM offices")
    assert command("restore", "app", "--version", "v1")[0] == 0
    assert schemas.rows_of(database, NAMES) == [("変更後",), ("変更後",)]


def test_item_22_versions(database: DatabaseURL, command: Command, said: Said) -> None:
    """There was one file for each name; what it had been before was lost.

    Now each call makes a version of its own, listed newest first; any of them can be restored,
    and one that is not there is no reason to take another.
    """
    schemas.run(database, OFFICES)
    made = []
    for name in ("一", "二", "三"):
        schemas.run(database, f"UPDATE offices SET name = '{name}'")
        made.append(json.loads(command("create", "app", "--json")[1])["snapshot"]["version"])

    listed = [item["version"] for item in json.loads(command("list", "app", "--json")[1])]
    assert listed == made[::-1]
    for version, name in ((made[0], "一"), (made[1], "二"), (None, "三")):
        assert command("restore", "app", *(["--version", version] if version else []))[0] == 0
        assert schemas.rows_of(database, NAMES) == [(name,), (name,)]
    said("no_version", command("restore", "app", "--version", "19990101_000000"), SnapshotNotFoundError)


def test_item_23_clean_up_after_30_days(command: Command, tmp_path: Path) -> None:
    """Old snapshots filled the disk.

    Now `keikaku prune` removes what is older than 30 days, or by rules of one's own; `--dry-run`
    shows it with reasons; the newest that is whole and what is pinned always stay.
    """
    store = SnapshotStore(tmp_path / "snapshots")
    now = datetime.now(UTC)

    def make(name: str, days: int, **facts: Any) -> None:
        moment = now - timedelta(days=days)
        write(store, "x", f"{moment:%Y%m%d_%H%M%S}", name=name, created_at=moment, **facts)

    for days in (90, 31, 29, 1):
        make("app", days)
    make("old", 400)
    make("kept", 300, pinned=True)
    make("kept", 200)
    before = versions(tmp_path / "snapshots")

    plan = json.loads(command("prune", "--dry-run", "--json")[1])
    assert versions(tmp_path / "snapshots") == before
    assert command("prune")[0] == 0

    assert len(plan["delete"]) == 2
    with SnapshotManager(None, tmp_path / "snapshots") as manager:
        left = {name: len(manager.list_snapshots(name)) for name in ("app", "old", "kept")}
    assert left == {"app": 2, "old": 1, "kept": 2}


def test_item_24_comparison(database: DatabaseURL, command: Command) -> None:
    """What had changed between two snapshots had to be guessed.

    Now `keikaku diff` tells schema, tables and rows by their key, between two snapshots or a
    snapshot and the database; it ends with 0 when both are the same and with 1 when not.
    """
    schemas.run(database, OFFICES)
    command("create", "app")
    assert command("diff", "app")[0] == 0
    schemas.run(
        database,
        "UPDATE offices SET name = '変更後' WHERE id = 1; DELETE FROM offices WHERE id = 2;"
        "INSERT INTO offices VALUES (3, '新しい', NULL); ALTER TABLE offices ADD COLUMN phone text",
    )
    command("create", "app")
    newest, older = (item["version"] for item in json.loads(command("list", "--json")[1]))

    for sides in (("app@" + older, "app@" + newest), ("app@" + older, "live")):
        code, out, err = command("diff", *sides, "--rows", "10", "--json")
        assert code == 1, err
        found = json.dumps(json.loads(out), ensure_ascii=False)
        for word in ("phone", "本物の事業所", "変更後", "新しい"):
            assert word in found


def test_item_25_incremental(
    server: Server, database: DatabaseURL, command: Command, said: Said, tmp_path: Path
) -> None:
    """Every night the whole database was written again, though hardly anything had changed.

    Now the directory format keeps equal table data once: each snapshot restores on its own, whatever
    is deleted, and a part that is damaged is named with every snapshot that it hurts.
    """
    schemas.run(database, OFFICES + "CREATE TABLE notes (id integer); INSERT INTO notes VALUES (1)")
    schemas.run(database, "INSERT INTO offices SELECT i, md5(i::text) FROM generate_series(3, 5000) AS i")
    assert command("create", "app", "--format", "directory")[0] == 0
    schemas.run(database, "INSERT INTO notes VALUES (2)")
    assert command("create", "app", "--format", "directory")[0] == 0
    second, first = json.loads(command("list", "--json")[1])
    assert second["shared_bytes"] > 10 * second["own_bytes"] > 0

    state = schemas.dump_text(server, database)
    assert command("delete", "app", "--version", first["version"])[0] == 0
    schemas.run(database, "DELETE FROM offices; DROP TABLE notes")
    assert command("restore", "app")[0] == 0
    assert schemas.dump_text(server, database) == state

    assert command("create", "app", "--format", "directory")[0] == 0
    largest = max(Path(second["path"]).iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(content)
    told = command("verify", "app", "--version", second["version"])
    said("part_damaged", told, SnapshotCorruptError, hide={r"\d+\.dat(\.gz)?": "3412.dat.gz"})
    for item in json.loads(command("list", "--json")[1]):
        assert item["version"] in told[2]
    assert command("restore", "app")[0] == 13


def test_item_26_compression(
    server: Server, database: DatabaseURL, command: Command, said: Said, tmp_path: Path
) -> None:
    """Snapshots of test rows took 500 MB, where 50 would do.

    Now `--compression gzip` makes a JSON snapshot less than a sixth of its size, plain dumps take gzip
    and zstd, and a packed file that is cut or changed is found like any other.
    """
    assert command("generate", "--scale", "small")[0] == 0
    state = sorted(schemas.dump_text(server, database).splitlines())
    sizes: dict[str, int] = {}
    for name, options in {
        "json": ("--scope", "test-data"),
        "json_gzip": ("--scope", "test-data", "--compression", "gzip"),
        "plain": (),
        "plain_gzip": ("--compression", "gzip"),
        "plain_zstd": ("--compression", "zstd"),
    }.items():
        code, out, err = command("create", name, *options, "--json")
        assert code == 0, err
        sizes[name] = json.loads(out)["snapshot"]["size_bytes"]
        schemas.run(database, "DELETE FROM support_plan_cycles")
        assert command("restore", name)[0] == 0
        assert sorted(schemas.dump_text(server, database).splitlines()) == state, name
    assert sizes["json_gzip"] <= 0.15 * sizes["json"]
    assert max(sizes["plain_gzip"], sizes["plain_zstd"]) < 0.35 * sizes["plain"]

    for name, kind in (("json_gzip", JSONCorruptError), ("plain_zstd", SnapshotCorruptError)):
        (item,) = json.loads(command("list", name, "--json")[1])
        Path(item["path"]).write_bytes(Path(item["path"]).read_bytes()[:-200])
        said(f"packed_{name}", command("restore", name, "--version", item["version"]), kind)
