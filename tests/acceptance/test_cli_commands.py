"""Commands in this process against a real server: exit codes by situation, JSON, doctor."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run
from keikaku_snapshots.postgres.locks import target_lock
from tests import servers

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: DatabaseURL
) -> Run:
    """Run the command line in this process, with the database named by the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("KEIKAKU_DB_URL", database.text)
    monkeypatch.setenv("KEIKAKU_RETRY_WAIT_MIN_S", "0")
    monkeypatch.setenv("KEIKAKU_RETRY_WAIT_MAX_S", "0")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def snapshot(type_: Run, database: DatabaseURL) -> Path:
    """A snapshot "x" of a table with one row; the database has a second row by now."""
    _execute(database, "CREATE TABLE t (id integer PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'a')")
    code, out, err = type_("create", "x", "--json")
    assert code == 0, err
    _execute(database, "INSERT INTO t VALUES (2, 'b')")
    return Path(json.loads(out)["snapshot"]["path"])


def _execute(url: DatabaseURL, text: str) -> None:
    with psycopg.connect(**url.connect_arguments()) as connection:
        connection.execute(text)


def _rows(url: DatabaseURL) -> Any:
    with psycopg.connect(**url.connect_arguments()) as connection:
        return connection.execute("SELECT count(*) FROM t").fetchone()


def _one_remedy(err: str) -> None:
    assert err.count("To fix this: ") == 1
    assert "Traceback" not in err


def test_0_all_is_well(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """A restore that worked."""
    assert type_("restore", "x")[0] == 0
    assert _rows(database) == (1,)


def test_2_an_unknown_scale_lists_the_known_ones(type_: Run) -> None:
    """A wrong value; nothing was touched."""
    code, _, err = type_("generate", "--scale", "huge")

    assert code == 2
    assert "small (10 offices), medium (100 offices)" in err


def test_2_an_unknown_dataset_lists_the_known_ones(type_: Run) -> None:
    """A wrong name of a dataset."""
    code, _, err = type_("generate", "--dataset", "kekaku")

    assert code == 2
    assert "Known datasets: keikaku" in err


@pytest.mark.parametrize("name", ["../x", "-rf", "latest", "a b", "", "x" * 101, "名前"])
def test_2_a_name_that_is_no_file_name(name: str, type_: Run) -> None:
    """FAULTS 37: names that mean something to a file system are refused."""
    code, _, err = type_("create", "--", name)

    assert code == 2
    _one_remedy(err)


@pytest.mark.parametrize("command", ["restore", "show", "verify"])
def test_10_there_is_no_such_snapshot(command: str, type_: Run) -> None:
    """A missing snapshot or version."""
    code, _, err = type_(command, "missing")

    assert code == 10
    assert "'missing'" in err
    _one_remedy(err)


def test_10_there_is_no_such_version(type_: Run, snapshot: Path) -> None:
    """A missing version is not replaced by another one."""
    for command in ("restore", "show", "verify", "delete"):
        assert type_(command, "x", "--version", "20010101_000000")[0] == 10


def test_11_another_process_makes_it(type_: Run, snapshot: Path, tmp_path: Path) -> None:
    """B8: the lock of the name is busy; it fails at once and says who has it."""
    hold = (
        "import sys; from keikaku_snapshots.snapshots.store import SnapshotStore\n"
        "with SnapshotStore('snapshots').writing('x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        seen = type_("doctor")[1]
        code, _, err = type_("create", "x")
        other.communicate()

    assert code == 11
    assert f"name.x is held by process {other.pid}" in seen
    assert str(other.pid) in err
    assert "--lock-wait" in err


def test_11_another_process_restores_the_database(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """B8: the lock of the database is busy; nothing changed."""
    with target_lock(database):
        code, _, err = type_("restore", "x")

    assert code == 11
    _one_remedy(err)
    assert _rows(database) == (2,)


def test_11_a_session_holds_the_table(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """FAULTS 60: in place waits for its lock timeout only, names the session, changes nothing."""
    with psycopg.connect(**database.connect_arguments()) as other:
        other.execute("SELECT * FROM t")
        code, _, err = type_("restore", "x", "--lock-timeout", "0.2")
        pid = other.info.backend_pid

    assert code == 11
    assert str(pid) in err
    assert "--disconnect" in err
    assert _rows(database) == (2,)


def test_12_nobody_listens(type_: Run) -> None:
    """The server is unreachable."""
    code, _, err = type_("create", "x", "--db-url", "postgresql://u:pw@127.0.0.1:1/d")

    assert code == 12
    assert "pg_isready" in err


def test_12_the_password_is_wrong(type_: Run, owner_database: DatabaseURL) -> None:
    """The server refuses the password, which is not repeated."""
    wrong = dataclasses.replace(owner_database, password="NotThePassword")

    code, out, err = type_("create", "x", "--db-url", wrong.text)

    assert code == 12
    assert "NotThePassword" not in out + err


def test_verify_all_reads_every_version_and_names_each_damaged_one(type_: Run, snapshot: Path) -> None:
    """B3: one damaged snapshot hides no other, neither when it is listed nor when all are checked."""
    assert type_("create", "y")[0] == 0
    assert type_("verify", "--all")[0] == 0
    snapshot.write_bytes(b"~" + snapshot.read_bytes()[1:])

    code, out, err = type_("verify", "--all", "--json")
    assert code == 13
    assert {item["snapshot"]["name"]: item["is_whole"] for item in json.loads(out)} == {"x": False, "y": True}
    assert "1 of 2 snapshots is damaged" in err
    assert type_("verify", "y", "--all")[0] == 0
    assert type_("verify", "x", "--all")[0] == 13
    assert type_("verify", "z", "--all")[0] == 10
    assert type_("verify")[0] == 2
    assert type_("verify", "--all", "--version", "20250131_031500")[0] == 2


def test_json_means_the_test_rows_when_no_scope_is_given(type_: Run) -> None:
    """The format json knows only one scope, so nobody has to say it."""
    assert type_("generate", "--scale", "small")[0] == 0
    assert type_("create", "rows", "--format", "json")[0] == 0

    assert json.loads(type_("show", "rows", "--json")[1])["manifest"]["scope"] == "test_data"


@pytest.mark.parametrize("damage", ["byte", "cut", "empty"])
def test_13_the_file_is_damaged(damage: str, type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """FAULTS 1, 7: a damaged file is found before the database is touched."""
    data = snapshot.read_bytes()
    middle = len(data) // 2
    changed = {"byte": data[:middle] + b"~" + data[middle + 1 :], "cut": data[:-20], "empty": b""}[damage]
    snapshot.write_bytes(changed)
    version = json.loads(type_("list", "--json")[1])[0]["version"]

    assert type_("restore", "x", "--version", version)[0] == 13
    assert type_("verify", "x")[0] == 13
    assert _rows(database) == (2,)
    if damage != "byte":
        assert "damaged" in type_("list")[1]
        assert type_("doctor")[0] == 13


def test_14_the_disk_is_too_full(
    type_: Run, snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6: less free than the configured minimum; no file appears."""
    before = sorted((tmp_path / "snapshots").iterdir())
    monkeypatch.setenv("KEIKAKU_MINIMUM_FREE_MB", "1000000000")

    code, _, err = type_("create", "x")

    assert code == 14
    assert "ディスク容量不足" in err
    assert sorted((tmp_path / "snapshots").iterdir()) == before
    assert type_("doctor")[0] == 14


def test_15_there_are_no_tools(type_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 67: no pg_dump of the server's version; found, where and what is needed."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("KEIKAKU_PG_BIN", str(tmp_path / "bin"))

    code, _, err = type_("create", "x")

    assert code == 15
    assert str(tmp_path / "bin") in err
    assert type_("doctor")[0] == 15


def test_16_the_database_looks_like_production(
    type_: Run, snapshot: Path, server: servers.Server, make_database: MakeDatabase
) -> None:
    """FAULTS 42: a protected word refuses restore and generate, until it is allowed."""
    live = make_database(server, name=f"app_live_{os.getpid()}")

    refused = [
        type_("restore", "x", "--db-url", live.text),
        type_("restore", "x", "--dry-run", "--db-url", live.text),
        type_("generate", "--scale", "small", "--db-url", live.text),
    ]

    assert [code for code, _, _ in refused] == [16, 16, 16]
    assert "'live'" in refused[0][2]
    assert type_("restore", "x", "--allow-protected", "--db-url", live.text)[0] == 0
    assert _rows(live) == (1,)


def test_16_the_database_is_another_application(
    type_: Run, snapshot: Path, server: servers.Server, make_database: MakeDatabase
) -> None:
    """PEERS 6, B15: a database with other tables is not replaced by mistake."""
    other = make_database(server)
    _execute(other, "CREATE TABLE other (id integer)")

    assert type_("restore", "x", "--db-url", other.text)[0] == 16
    assert type_("restore", "x", "--from-other-database", "--db-url", other.text)[0] == 0


def test_18_the_role_may_not_read(type_: Run, database: DatabaseURL, owner_database: DatabaseURL) -> None:
    """A role without rights: pg_dump fails, nothing is published."""
    _execute(
        dataclasses.replace(database, database=owner_database.database), "CREATE TABLE secret (id integer)"
    )

    code, _, err = type_("create", "x", "--db-url", owner_database.text)

    assert code in {18, 19}
    assert "secret" in err
    assert json.loads(type_("list", "--json")[1]) == []


def test_26_a_generator_breaks_a_constraint(type_: Run, tmp_path: Path, database: DatabaseURL) -> None:
    """A9: table, batch and constraint in plain words; nothing was written, no snapshot made."""
    (tmp_path / "broken.py").write_text(
        "import sqlalchemy as sa\n"
        "from keikaku_snapshots.datasets import Dataset, Scale, Table\n"
        "t = sa.Table('t', sa.MetaData(), sa.Column('id', sa.Integer, primary_key=True),\n"
        "    sa.Column('is_test_data', sa.Boolean))\n"
        "def rows(shard):\n"
        "    return [('1', 't'), ('1', 't')]\n"
        "tables = (Table(t, rows, columns=('id', 'is_test_data')),)\n"
        "dataset = Dataset('broken', tables, scales=(Scale('small', 1),))\n",
        encoding="utf-8",
    )

    code, _, err = type_("generate", "--dataset", "broken:dataset", "--scale", "small")

    assert code == 26
    assert "一意制約違反" in err
    assert "t_pkey" in err
    assert json.loads(type_("list", "--json")[1]) == []


def test_27_the_memory_limit_is_reached(type_: Run, database: DatabaseURL) -> None:
    """A7: the limit stops the work with nothing written."""
    code, _, err = type_("generate", "--scale", "small", "--memory-limit", "1")

    assert code == 27
    _one_remedy(err)


def test_28_the_schema_has_moved_on(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """PEERS 19, B7: error names the difference and restores nothing; the default warns and restores."""
    _execute(database, "ALTER TABLE t ADD COLUMN note text")

    code, _, err = type_("restore", "x", "--on-schema-mismatch", "error")
    assert code == 28
    assert "スキーマバージョンが一致しません" in err
    assert "note" in err
    assert _rows(database) == (2,)

    code, _, err = type_("restore", "x")
    assert code == 0
    assert "warning: " in err
    assert _rows(database) == (1,)


def test_quiet_success_is_silent(type_: Run, snapshot: Path) -> None:
    """For cron: generate, create, restore, verify, delete with -q print nothing when they succeed."""
    commands = ("create y", "restore y", "verify x", "delete x --all", "generate --scale small")

    for command in commands:
        assert type_(*command.split(), "-q") == (0, "", ""), command


def test_the_password_is_nowhere(
    type_: Run, creator_database: DatabaseURL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEERS 14, FAULTS 30, 31: not in what is printed with -vv and not in any file that is left."""
    monkeypatch.setenv("KEIKAKU_DB_URL", creator_database.text)
    commands = ["generate --scale small", "create x --format custom", "restore x", "restore x --dry-run"]
    commands += ["list", "doctor", "restore missing"]

    done = [type_(*command.split(), "-vv", "--json") for command in commands]

    texts = [text for _, out, err in done for text in (out, err)]
    files = [file for file in (tmp_path / "snapshots").rglob("*") if file.is_file()]
    texts += [file.read_text(encoding="utf-8", errors="replace") for file in files]
    assert [code for code, _, _ in done] == [0, 0, 0, 0, 0, 0, 10]
    for form in (servers.ROLE_PASSWORD, creator_database.text, json.dumps(servers.ROLE_PASSWORD)[1:-1]):
        assert not [text for text in texts if form in text]


def test_dry_runs_change_nothing(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """--dry-run checks and tells; database and files stay as they are."""
    type_("create", "x")

    _, told, words = type_(
        "restore", "x", "--dry-run", "--json", "--version", snapshot.stem.removeprefix("x_")
    )
    _, shown, _ = type_("delete", "x", "--keep", "1", "--dry-run", "--json")

    assert json.loads(told)["row_counts_now"] == {"public.t": 2}
    assert "would replace 2 rows in 1 table by 1 row in 1 table" in words
    assert _rows(database) == (2,)
    assert json.loads(shown)["deleted"] == []
    assert [item["path"] for item in json.loads(shown)["chosen"]] == [str(snapshot)]
    assert len(json.loads(type_("list", "--json")[1])) == 2


def test_a_trusted_file_is_tried_as_it_would_be_restored(
    type_: Run, snapshot: Path, database: DatabaseURL
) -> None:
    """`restore --dry-run --trust`: a file without a manifest, whose rows nobody has counted."""
    (snapshot.parent / "hand_v1.sql").write_bytes(snapshot.read_bytes())

    assert type_("restore", "hand", "--dry-run")[0] == 10
    code, _, err = type_("restore", "hand", "--dry-run", "--trust")

    assert code == 0, err
    assert "would replace 2 rows in 1 table by what the file holds" in err
    assert _rows(database) == (2,)
    assert type_("restore", "hand", "--trust")[0] == 0
    assert _rows(database) == (1,)


def test_an_own_scale_takes_the_rest_from_the_dataset(type_: Run, tmp_path: Path) -> None:
    """A2: a scale in YAML says what differs; the numbers for each office that it leaves out are the usual."""
    text = "scales: {tiny: {offices: 2, per_unit: {recipients: 5}}}"
    (tmp_path / "keikaku.yml").write_text(text, encoding="utf-8")

    code, out, err = type_("generate", "--scale", "tiny", "--json")

    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert (rows["offices"], rows["staffs"], rows["welfare_recipients"]) == (2, 21, 10)


def test_restoring_loads_nothing_that_it_does_not_need(
    database: DatabaseURL, tmp_path: Path, snapshot: Path
) -> None:
    """C3: a restore from cron never pays for SQLAlchemy, pydantic or rich."""
    code = (
        "import sys\n"
        "from keikaku_snapshots.cli import main\n"
        "heavy = {'sqlalchemy', 'pydantic', 'rich'}\n"
        "try: main(['restore', 'x', '-q'])\n"
        "except SystemExit as end: print(end.code, sorted(heavy & set(sys.modules)))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "KEIKAKU_DB_URL": database.text},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "0 []\n", done.stderr


def test_an_own_dataset_beside_the_call(type_: Run, database: DatabaseURL, tmp_path: Path) -> None:
    """A6: --dataset module:attribute finds a file of the working directory, scales the configuration."""
    (tmp_path / "own_shop.py").write_text(
        "import sqlalchemy as sa\n"
        "from keikaku_snapshots.datasets import Dataset, Scale, Table\n"
        "customers = sa.Table('t', sa.MetaData(), sa.Column('id', sa.Integer, primary_key=True),\n"
        "    sa.Column('is_test_data', sa.Boolean))\n"
        "def rows(shard):\n"
        "    return ((str(n), 't') for n in shard.identities('t', 1))\n"
        "tables = (Table(customers, rows, columns=('id', 'is_test_data'), rows_per_unit=1),)\n"
        "dataset = Dataset('shop', tables, scales=(Scale('small', 3),), unit='customers')\n",
        encoding="utf-8",
    )
    (tmp_path / "keikaku.yml").write_text("scales: {five: {units: 5}}\n", encoding="utf-8")

    code, _, err = type_("generate", "--dataset", "own_shop:dataset", "--scale", "five")

    assert code == 0, err
    assert "snapshot five_5_customers" in err
    assert _rows(database) == (5,)


@pytest.mark.parametrize(
    "command", ["list", "show x", "verify x", "doctor", "restore x", "create y", "delete x --all"]
)
def test_json_is_exactly_one_document(command: str, type_: Run, snapshot: Path) -> None:
    """--json: stdout is one document, whatever is said on stderr."""
    code, out, _ = type_(*command.split(), "--json", "-v")

    assert code == 0
    json.loads(out)


def test_list_has_every_field_of_a_snapshot(type_: Run, snapshot: Path) -> None:
    """A script finds what `Snapshot` has."""
    (item,) = json.loads(type_("list", "--json")[1])

    assert {
        "path",
        "name",
        "version",
        "created_at",
        "size_bytes",
        "row_counts",
        "is_valid",
        "problem",
    } <= set(item)
    assert item["created_at"].endswith("+00:00")
    assert item["row_counts"] == {"public.t": 1}


def test_doctor_says_what_a_role_may(
    type_: Run, owner_database: DatabaseURL, creator_database: DatabaseURL, database: DatabaseURL
) -> None:
    """Rights decide which ways of restoring work; advice is no failure."""
    found = [type_("doctor", "--db-url", url.text) for url in (owner_database, creator_database, database)]

    assert [code for code, _, _ in found] == [0, 0, 0]
    assert "may not create databases" in found[0][1]
    assert "CREATEDB" in found[0][1]
    assert "owns the database and may create databases" in found[1][1]
    assert "is superuser" in found[2][1]


def test_doctor_names_what_a_failed_check_looked_at(type_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first word says where to look."""
    monkeypatch.setenv("KEIKAKU_PG_BIN", "/nonexistent")

    code, out, _ = type_("doctor")

    assert code == 15
    assert "PROBLEM  PostgreSQL tools: " in out


def test_doctor_finds_and_fixes_leftovers(
    type_: Run, snapshot: Path, database: DatabaseURL, tmp_path: Path
) -> None:
    """What a killed run left is named, and removed with --fix; foreign things stay."""
    from keikaku_snapshots.postgres.databases import create_scratch
    from keikaku_snapshots.postgres.identity import sibling_name
    from keikaku_snapshots.postgres.locks import connect_maintenance

    name = sibling_name("new", database.database)
    with connect_maintenance(database) as connection:
        create_scratch(connection, name, like=database.database)
    (tmp_path / "snapshots").chmod(0o755)

    code, out, _ = type_("doctor")
    assert code == 0
    assert name in out
    assert "keikaku doctor --fix" in out
    assert "chmod 700" in out

    with target_lock(database):
        assert "Database lock: held by server process" in type_("doctor")[1]

    assert name in type_("doctor", "--fix")[1]
    with connect_maintenance(database) as connection:
        found = connection.execute("SELECT count(*) FROM pg_database WHERE datname = %s", [name]).fetchone()
    assert found == (0,)


def test_hooks_of_the_command_line_run_and_are_told(
    type_: Run, snapshot: Path, database: DatabaseURL
) -> None:
    """B7: --after-restore may be repeated; they are said, and part of --json."""
    hooks = ("--after-restore", "psql -qc 'DELETE FROM t'", "--after-restore", "psql -qc 'ANALYZE t'")
    code, out, err = type_("restore", "x", "--json", *hooks)

    assert code == 0, err
    assert "ran psql -qc 'DELETE FROM t' on it before it went live" in err
    assert [hook["hook"] for hook in json.loads(out)["hooks"]] == [hooks[1], hooks[3]]
    assert _rows(database) == (0,)


def test_a_dry_run_shows_the_configured_hooks(type_: Run, snapshot: Path, tmp_path: Path) -> None:
    """B7: what would run stands beside what would be replaced; what would be refused is refused now."""
    (tmp_path / "keikaku.yml").write_text("after_restore: [\"psql -qc 'SELECT 1'\"]\n", encoding="utf-8")

    code, out, err = type_("restore", "x", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["after_restore"] == ["psql -qc 'SELECT 1'"]
    assert "and run on it before it goes live: psql -qc 'SELECT 1'" in err
    code, out, _ = type_("restore", "x", "--dry-run", "--json", "--no-after-restore")
    assert (code, json.loads(out)["after_restore"]) == (0, [])
    assert type_("restore", "x", "--dry-run", "--strategy", "in_place")[0] == 2
    assert type_("restore", "x", "--after-restore", "true", "--no-after-restore")[0] == 2


def test_25_a_hook_fails(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """B7: the code of a failed restore, and the end of what the hook said."""
    code, _, err = type_("restore", "x", "--after-restore", "sh -c 'echo no such column; exit 7'")

    assert code == 25
    assert "hook 1 ended with exit code 7" in err
    assert "no such column" in err
    assert _rows(database) == (2,)
    code, _, err = type_("restore", "x", "--after-restore", "sleep 60", "--hook-timeout", "0.2")
    assert code == 25
    assert "time limit of 0.2 s" in err


def test_11_hooks_while_others_are_connected(type_: Run, snapshot: Path, database: DatabaseURL) -> None:
    """B7: auto never disconnects, and never leaves the hooks out in silence; both ways out are named."""
    with psycopg.connect(**database.connect_arguments()):
        code, _, err = type_("restore", "x", "--after-restore", "psql -qc 'DELETE FROM t'")
        assert code == 11
        assert "--disconnect" in err
        assert "--no-after-restore" in err
        assert _rows(database) == (2,)
