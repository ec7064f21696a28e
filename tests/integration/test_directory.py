"""Directory snapshots: several workers write them and several connections load them, all or nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from psycopg import sql

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    ConnectError,
    CreateFailedError,
    RestoreFailedError,
    SnapshotCorruptError,
    UsageError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from keikaku_snapshots.postgres.tools import start_pg_restore
from keikaku_snapshots.snapshots import archive, dump, parallel_load
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL
from tests.integration.test_restore_swap import siblings, wait_until_clean
from tests.servers import ROLE_PASSWORD, as_role

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots._process import RunningTool
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from tests.conftest import MakeDatabase
    from tests.servers import Server


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small", format="directory", jobs=2)
        schemas.run(database, CHANGED)
        yield manager


def raw_dump(server: Server, url: DatabaseURL, path: Path, *options: str) -> None:
    """Dump by hand."""
    subprocess.run(
        [server.bin / "pg_dump", "-w", "-Fd", "-f", path, *options],
        env={"PGHOST": str(url.host), "PGPORT": str(url.port), "PGUSER": url.user,
             "PGPASSWORD": url.password or "", "PGDATABASE": url.database},
        check=True,
    )  # fmt: skip


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each pg_restore that loads."""
    calls: list[dict[str, Any]] = []

    def remembered(*arguments: Any, **options: Any) -> RunningTool:
        calls.append(options)
        return start_pg_restore(*arguments, **options)

    monkeypatch.setattr(parallel_load, "start_pg_restore", remembered)
    return calls


# -- making ---------------------------------------------------------------------------------


def test_workers_write_the_same_bytes_as_one(database: DatabaseURL, tmp_path: Path) -> None:
    """B11: the default level is always the same, so parts of successive snapshots can be shared."""
    schemas.run(database, SMALL)
    told: list[Progress] = []
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        one = manager.create_snapshot("a", format="directory", progress=told.append)
        two = manager.create_snapshot("b", format="directory", jobs=3)
        plain = manager.create_snapshot("c", format="directory", level=0)
    assert one.manifest is not None
    assert two.manifest is not None
    assert {**one.manifest.parts, archive.TOC_FILE: 0} == {**two.manifest.parts, archive.TOC_FILE: 0}
    assert {path.suffix for path in one.path.iterdir()} == {".gz", ".dat"}
    assert {path.suffix for path in plain.path.iterdir()} == {".dat"}
    assert told[-1].finished
    assert told[-1].done == one.size_bytes == sum(path.stat().st_size for path in one.path.iterdir())


def test_too_many_jobs_are_refused_before_anything_is_begun(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """A worker is a connection: the server's limit and the role's are looked at, and which it is is said."""
    url = make_database(server)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1, retry=RetryPolicy(attempts=1)) as manager:
        with pytest.raises(ConnectError, match="jobs=5000 needs 5001 more connections") as caught:
            manager.create_snapshot("a", format="directory", jobs=5000)
        assert caught.value.details["transient"] is False
        manager.create_snapshot("a", format="directory")
        with pytest.raises(ConnectError, match="jobs=5000"):
            manager.restore_snapshot("a", strategy="swap", jobs=5000)
        for jobs in (0, -1):
            with pytest.raises(UsageError):
                manager.restore_snapshot("a", jobs=jobs)
    name = f"few_{url.database}"
    with server.admin() as admin:
        limited = sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 3 PASSWORD {}")
        admin.execute(limited.format(sql.Identifier(name), sql.Literal(ROLE_PASSWORD)))
        admin.execute(f"ALTER DATABASE {url.database} OWNER TO {name}")
    try:
        with (
            SnapshotManager(
                as_role(url, name), tmp_path, minimum_free_mb=1, retry=RetryPolicy(attempts=1)
            ) as manager,
            pytest.raises(ConnectError, match="needs 3 more connections to the server, which has 2 left"),
        ):
            manager.create_snapshot("b", format="directory", jobs=2)
    finally:
        with server.admin() as admin:
            admin.execute(f"ALTER DATABASE {url.database} OWNER TO postgres")
            admin.execute(f"DROP ROLE {name}")


def test_an_archive_that_cannot_be_read_back_is_not_published(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 7: all of it is read before it counts."""
    before = sorted(small.directory.iterdir())
    wait = dump._follow

    def cut(running: Any, writer: Any, progress: Any) -> None:
        wait(running, writer, progress)
        running.wait()
        part = max(writer.target.glob("*.dat.gz"), key=lambda path: path.stat().st_size)
        os.truncate(part, part.stat().st_size - 20)

    monkeypatch.setattr(dump, "_follow", cut)
    with pytest.raises(CreateFailedError, match="作成に失敗"):
        small.create_snapshot("small", format="directory")
    assert sorted(small.directory.iterdir()) == before


# -- restoring ------------------------------------------------------------------------------


def test_rows_and_indexes_are_loaded_by_several_connections(
    server: Server, small: SnapshotManager, started: list[dict[str, Any]]
) -> None:
    """B5: twice pg_restore -j, for the rows and for what is built on them; the rest is ours."""
    told: list[Progress] = []
    restored = small.restore_snapshot("small", strategy="swap", jobs=2, progress=told.append)
    assert restored.warnings == ()
    assert [call["jobs"] for call in started] == [2, 2]
    assert schemas.rows_of(small.url, "SELECT count(*), max(id) FROM children") == [(500, 500)]
    assert schemas.rows_of(small.url, "SELECT last_value FROM parents_id_seq") == [(50,)]
    assert schemas.rows_of(
        small.url, "SELECT count(*) FROM pg_stats WHERE tablename IN ('parents', 'children')"
    ) == [(5,)]
    assert told[-1].finished
    wait_until_clean(server, small.url)


def test_few_bytes_are_loaded_by_one_connection(
    small: SnapshotManager, started: list[dict[str, Any]]
) -> None:
    """Two programs less are started; measured faster below two megabytes."""
    small.restore_snapshot("small", strategy="swap")
    assert started == []
    assert schemas.rows_of(small.url, "SELECT count(*) FROM children") == [(500,)]


LATE = """
CREATE TABLE offices (id int PRIMARY KEY, name text, boss int);
INSERT INTO offices SELECT i, 'o' || i, i FROM generate_series(1, 20) i;
CREATE VIEW grouped AS SELECT id, name FROM offices GROUP BY id;
CREATE MATERIALIZED VIEW stored AS SELECT id, name FROM grouped;
CREATE UNIQUE INDEX stored_id ON stored (id);
CREATE INDEX stored_name ON stored (upper(name));
COMMENT ON INDEX stored_name IS 'late';
CREATE MATERIALIZED VIEW twice AS SELECT s.id FROM stored s JOIN grouped g USING (id);
CREATE INDEX ON twice (id);
CREATE FUNCTION known(i int) RETURNS boolean LANGUAGE sql STABLE
  BEGIN ATOMIC SELECT EXISTS (SELECT FROM grouped WHERE id = i); END;
ALTER TABLE offices ADD FOREIGN KEY (boss) REFERENCES offices;
CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE part_one PARTITION OF parts FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO parts VALUES (1, '2025-05-05');
CREATE TABLE notes (part int, at date, FOREIGN KEY (part, at) REFERENCES parts);
INSERT INTO notes VALUES (1, '2025-05-05');
CREATE INDEX ON parts (at);
ALTER TABLE offices CLUSTER ON offices_pkey;
ALTER TABLE offices REPLICA IDENTITY USING INDEX offices_pkey;
ALTER INDEX stored_name ALTER COLUMN 1 SET STATISTICS 400;
"""


def test_indexes_of_views_that_come_late_come_later_still(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path, started: list[dict[str, Any]]
) -> None:
    """A view that needs a primary key is made behind it, and an index on what is made of it behind that."""
    url = make_database(each_server)
    schemas.run(url, LATE)
    before = schemas.dump_text(each_server, url)
    with SnapshotManager(url, tmp_path, minimum_free_mb=1) as manager:
        manager.create_snapshot("late", format="directory", jobs=2)
        schemas.run(url, "DROP MATERIALIZED VIEW twice; DELETE FROM notes")
        manager.restore_snapshot("late", strategy="swap", on_schema_mismatch="ignore", jobs=2)
    assert len(started) == 2
    assert schemas.dump_text(each_server, url) == before
    assert schemas.rows_of(url, "SELECT count(*) FROM twice") == [(20,)]


def checked_by(name: str, later: str) -> str:
    """Statements for a CHECK that all rows passed when it was made, and that another function decides now."""
    function = f"FUNCTION {name}(t text) RETURNS boolean LANGUAGE sql AS"
    return (
        f"CREATE {function} 'SELECT true';"
        f"ALTER TABLE children ADD CONSTRAINT is_{name} CHECK ({name}(mood));"
        f"CREATE OR REPLACE {function} 'SELECT {later}'"
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            "SET session_replication_role = replica; UPDATE children SET parent_id = 999 WHERE id = 7",
            ("外部キー制約違反", "children_parent_id_fkey", "children"),
        ),
        (
            checked_by("fine", "false"),
            ("CHECK制約違反", "is_fine", "children"),
        ),
    ],
)
def test_rows_that_break_a_constraint_are_told_and_nothing_changes(
    server: Server, small: SnapshotManager, damage: str, words: tuple[str, ...]
) -> None:
    """B2, FAULTS 33: table and constraint are named, the key is for code only."""
    schemas.run(small.url, damage)
    small.create_snapshot("broken", format="directory")
    before = schemas.dump_text(server, small.url)
    with pytest.raises(RestoreFailedError) as caught:
        small.restore_snapshot("broken", strategy="swap", jobs=2)
    for word in words:
        assert word in str(caught.value)
    assert f"Database: {small.url.location}" in str(caught.value)
    for word in ("999", "launching", "keikaku_new"):
        assert word not in caught.value.found.replace(small.url.location, "")
    assert schemas.dump_text(server, small.url) == before
    assert siblings(server, small.url) == []


def _kill_one_worker(running: RunningTool) -> None:
    leader = psutil.Process(running.pid)
    while not (workers := leader.children()):
        assert leader.is_running()
    workers[0].kill()


@pytest.mark.parametrize("victim", ["worker", "leader"])
def test_a_killed_pg_restore_changes_nothing(
    server: Server, small: SnapshotManager, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """FAULTS 43: whoever of them dies, all end, and the new database is dropped."""
    _slow(small)
    before = schemas.dump_text(server, small.url)
    ran: list[int] = []

    def killed(*arguments: Any, **options: Any) -> RunningTool:
        running = start_pg_restore(*arguments, **options)
        ran.append(running.pid)
        kill = _kill_one_worker if victim == "worker" else lambda one: os.kill(one.pid, signal.SIGKILL)
        kill(running)
        return running

    monkeypatch.setattr(parallel_load, "start_pg_restore", killed)
    with pytest.raises(RestoreFailedError):
        small.restore_snapshot("slow", strategy="swap", jobs=2)
    assert len(ran) == 1
    assert [one for one in psutil.process_iter() if _in_group(one, ran[0])] == []
    assert schemas.dump_text(server, small.url) == before
    assert siblings(server, small.url) == []


def _slow(manager: SnapshotManager) -> None:
    """Make a snapshot whose first row takes a minute to load."""
    schemas.run(
        manager.url,
        checked_by("slow", "pg_catalog.pg_sleep(60) IS NOT NULL"),
    )
    manager.create_snapshot("slow", format="directory")


def _in_group(process: psutil.Process, group: int) -> bool:
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False


_KILLED = """
import os, signal, sys
import psutil
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.snapshots import parallel_load
url, directory = sys.argv[1:]
start = parallel_load.start_pg_restore
def die(*arguments, **options):
    running = start(*arguments, **options)
    while not psutil.Process(running.pid).children():
        pass
    print(running.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
parallel_load.start_pg_restore = die
SnapshotManager(url, directory, minimum_free_mb=1).restore_snapshot("slow", strategy="swap", jobs=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a program's children of our death")
def test_kill_9_of_this_process_takes_all_workers_with_it(
    server: Server, small: SnapshotManager, tmp_path: Path
) -> None:
    """FAULTS 44: a worker that went on would hold the snapshot and fill a database that nobody waits for.

    Of the temporary files only that with the password has a name, and the next run removes it.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    _slow(small)
    before = schemas.dump_text(server, small.url)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, small.url.text, str(small.directory)],
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [file.name for file in temporary.iterdir() if not file.name.startswith("keikaku-pass-")] == []
    group = int(killed.stdout)
    psutil.wait_procs([one for one in psutil.process_iter() if _in_group(one, group)], timeout=20)
    assert [one for one in psutil.process_iter() if _in_group(one, group)] == []
    assert schemas.dump_text(server, small.url) == before
    small.restore_snapshot("small", strategy="swap", on_schema_mismatch="ignore", jobs=2)
    wait_until_clean(server, small.url)


@pytest.mark.parametrize("strategy", ["swap", "in_place"])
@pytest.mark.parametrize("what", ["changed", "missing", "cut", "added"])
def test_a_damaged_part_is_named_and_nothing_changes(
    server: Server, small: SnapshotManager, strategy: str, what: str
) -> None:
    """FAULTS 1, 7: each part has its checksum, and no other file belongs to the snapshot."""
    snapshot = small.get_snapshot("small")
    part = max(snapshot.path.glob("*.dat.gz"), key=lambda path: path.stat().st_size)
    content = part.read_bytes()
    part.unlink()
    if what == "changed":
        part.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    elif what == "cut":
        part.write_bytes(content[:-8])
    elif what == "added":
        part.write_bytes(content)
        (snapshot.path / "9999.dat").write_bytes(b"\\.\n\n\n")
    before = schemas.dump_text(server, small.url)
    with pytest.raises(SnapshotCorruptError) as caught:
        small.restore_snapshot("small", snapshot.version, strategy=strategy, jobs=2)
    assert (part.name if what != "added" else "9999.dat") in str(caught.value)
    assert schemas.dump_text(server, small.url) == before
    assert siblings(server, small.url) == []


# -- made by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-Z0",), ("--inserts",), ("-j3",)])
def test_a_directory_made_by_hand_is_taken_on_trust(
    server: Server, small: SnapshotManager, options: tuple[str, ...], started: list[dict[str, Any]]
) -> None:
    """B13: any directory archive of pg_dump; rows as INSERT statements go through our loader."""
    before = schemas.dump_text(server, small.url)
    raw_dump(server, small.url, small.directory / "hand_made.dir", *options)
    with pytest.raises(FileNotFoundError):
        small.restore_snapshot("hand")
    for strategy in ("swap", "in_place"):
        schemas.run(small.url, "DELETE FROM children; CREATE TABLE newer (a int)")
        restored = small.restore_snapshot("hand", strategy=strategy, trust=True, jobs=2)
        assert "no manifest" in restored.warnings[0]
        assert schemas.dump_text(server, small.url) == before
    assert len(started) == (0 if "--inserts" in options else 2)


@pytest.mark.parametrize("form", ["directory", "custom"])
def test_an_archive_without_manifest_is_verified_as_a_whole(
    server: Server, small: SnapshotManager, form: str
) -> None:
    """FAULTS 7: a cut in the rows is found by `verify --trust`, not only by the restore."""
    path = small.directory / ("hand_made.dir" if form == "directory" else "hand_made.dump")
    raw_dump(server, small.url, path, *(["-Fc"] if form == "custom" else []))
    assert small.verify_snapshot("hand", trust=True).checks == ("header and end", "archive read as a whole")
    rows = max([path] if path.is_file() else path.glob("*.dat.gz"), key=lambda one: one.stat().st_size)
    rows.write_bytes(rows.read_bytes()[:-20])
    with pytest.raises(SnapshotCorruptError, match=r"reading hand_made"):
        small.verify_snapshot("hand", trust=True)


@pytest.mark.parametrize("content", [b"", b"PGDMP", b"PGDMP\x01\x10\x00\x04\x08\x03", b"PGDMX" + bytes(4096)])
def test_what_does_not_say_who_made_it_is_no_archive(tmp_path: Path, content: bytes) -> None:
    """FAULTS 1: a head that was cut or changed is a damaged file, not an accident."""
    (tmp_path / archive.TOC_FILE).write_bytes(content)
    for path, flags in ((tmp_path, os.O_DIRECTORY), (tmp_path / archive.TOC_FILE, 0)):
        descriptor = os.open(path, os.O_RDONLY | flags)
        try:
            with pytest.raises(SnapshotCorruptError, match="which pg_dump made it"):
                archive.major_of(descriptor, "x")
        finally:
            os.close(descriptor)


def test_a_directory_that_would_run_a_program_is_refused(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 23: pg_restore itself would send what the archive calls a COPY statement."""
    url = make_database(server)
    name = "t" * 60
    schemas.run(url, f"CREATE TABLE {name} (a text); INSERT INTO {name} VALUES ('x')")
    path = tmp_path / "snapshots" / "bad_label.dir"
    path.parent.mkdir()
    raw_dump(server, url, path)
    witness = tmp_path / "witness"
    honest = f"COPY public.{name} (a) FROM stdin;\n".encode()
    evil = f"COPY public.{name[:1]} FROM PROGRAM 'touch {witness}';".encode()
    toc = path / archive.TOC_FILE
    data = toc.read_bytes()
    assert data.count(honest) == 1
    # The length in front of it, least byte first.
    length = b"\0" + len(honest).to_bytes(4, "little")
    toc.write_bytes(data.replace(length + honest, b"\0" + len(evil).to_bytes(4, "little") + evil))
    with SnapshotManager(url, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        for strategy in ("swap", "in_place"):
            with pytest.raises(SnapshotCorruptError, match="pg_dump never writes"):
                manager.restore_snapshot("bad", "label", strategy=strategy, trust=True, jobs=2)
    assert not witness.exists()
    assert schemas.rows_of(url, f"SELECT a FROM {name}") == [("x",)]
    assert siblings(server, url) == []


def test_a_table_of_contents_cut_anywhere_is_refused(server: Server, small: SnapshotManager) -> None:
    """FAULTS 1: at every byte; what a later version adds is not guessed at."""
    raw_dump(server, small.url, small.directory / "hand_made.dir")
    data = (small.directory / "hand_made.dir" / archive.TOC_FILE).read_bytes()
    whole = archive.parse_contents(data, "x")
    assert whole is not None
    assert {"TABLE DATA", "FK CONSTRAINT"} <= {entry.kind for entry in whole.entries}
    for length in range(len(data)):
        with pytest.raises(SnapshotCorruptError):
            archive.parse_contents(data[:length], "x")
    with pytest.raises(SnapshotCorruptError):
        archive.parse_contents(data + b"\0", "x")
    assert archive.parse_contents(data[:6] + b"\x63" + data[7:], "x") is None


def test_a_layout_that_is_newer_than_this_library_is_loaded_as_a_script(
    small: SnapshotManager, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    """A new version of PostgreSQL is no reason to fail: its pg_restore can read it."""
    monkeypatch.setattr(archive, "_KNOWN", ())
    small.create_snapshot("newer", format="directory")
    schemas.run(small.url, "DELETE FROM children")
    assert small.compare_snapshots("newer", "live").tables[0].removed == 300
    small.restore_snapshot("newer", strategy="swap", jobs=2)
    assert started == []
    assert schemas.rows_of(small.url, "SELECT count(*) FROM children") == [(300,)]
    with psycopg.connect(small.url.text, autocommit=True) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
