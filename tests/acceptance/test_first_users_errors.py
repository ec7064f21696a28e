"""The five cases by which the first users wanted to see that errors are handled, in their words.

Each is a real fault, met through the command line and through the library.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.datasets import bulk_create_offices, bulk_create_staffs, generate
from keikaku_snapshots.errors import (
    ConnectError,
    DiskFullError,
    ForeignKeyError,
    JSONCorruptError,
    RestoreFailedError,
)
from keikaku_snapshots.postgres.connect import RetryPolicy
from tests.integration import schemas
from tests.proxy import Proxy, after_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command, SmallDisk
    from tests.messages import Said

#: Tries without the usual waiting.
QUICK = RetryPolicy(attempts=3, wait_min_s=0.01, wait_max_s=0.02)

#: Small in the database, 40 MB as text: no estimate sees it coming.
LARGE = """
CREATE TABLE offices (id integer PRIMARY KEY, note text, is_test_data boolean DEFAULT true);
INSERT INTO offices SELECT i, repeat('事業所', 100000) FROM generate_series(1, 45) AS i;
"""
#: pg_dump writes `bookings` before `offices`, so the check of `bookings` fails when it is restored.
RESTORES_NOWHERE = """
CREATE TABLE offices (id integer PRIMARY KEY);
CREATE FUNCTION office_exists(integer) RETURNS boolean LANGUAGE sql
  AS 'SELECT EXISTS (SELECT FROM public.offices WHERE id = $1)';
CREATE TABLE bookings (
  office_id integer CONSTRAINT office_must_exist CHECK (public.office_exists(office_id))
);
INSERT INTO offices VALUES (1), (2);
INSERT INTO bookings VALUES (1), (2);
"""
TABLES = ("offices", "bookings")
#: Which of its writes fails hangs on the format.
PG_DUMP_WORDS = "  pg_dump: error: could not write to output file: No space left on device"
#: How libpq tells of a lost connection hangs on the moment.
LIBPQ_WORDS = r"(?m)^  (?:consuming|could not|server closed|sending).*(?:\n  \t.*)*"
TEST_ROWS = """
CREATE TABLE offices (id integer PRIMARY KEY, name text, is_test_data boolean NOT NULL DEFAULT true);
INSERT INTO offices VALUES (1, '本物の事業所', false), (2, 'テスト事業所', true);
"""


class TestDiskFull:
    """ディスク容量不足: a full disk leaves no file."""

    @pytest.mark.parametrize(
        "options", [(), ("--format", "custom", "--level", "0"), ("--scope", "test-data")], ids=str
    )
    def test_a_disk_that_fills_up_leaves_no_file(
        self, options: tuple[str, ...], database: DatabaseURL, small_disk: SmallDisk, said: Said
    ) -> None:
        """ディスク容量不足: a disk of 12 MB is full in the middle of 40 MB."""
        schemas.run(database, LARGE)
        code, files, err = small_disk.run("create", "medium_100_offices", *options, size_mb=12)

        key = "disk_full_rows" if "test-data" in options else "disk_full_pg_dump"
        said(key, (code, "", err), DiskFullError, hide={r"(?m)^  pg_dump: error: .*$": PG_DUMP_WORDS})
        left = {line for line in files.splitlines() if not line.endswith((".lock", "/audit.log"))}
        assert left == set()

    def test_the_library_says_the_same_and_keeps_what_was_there(
        self, database: DatabaseURL, tmp_path: Path, said: Said
    ) -> None:
        """ディスク容量不足: too little room before the work begins; the earlier snapshot stays."""
        schemas.run(database, TEST_ROWS)
        with SnapshotManager(database.text, tmp_path / "snapshots", minimum_free_mb=1) as manager:
            earlier = manager.create_snapshot("medium_100_offices")
        before = sorted(tmp_path.rglob("*"))
        with (
            SnapshotManager(database.text, tmp_path / "snapshots", minimum_free_mb=10**9) as manager,
            pytest.raises(DiskFullError, match="ディスク容量不足") as caught,
        ):
            manager.create_snapshot("medium_100_offices")

        said("disk_full_before", caught.value)
        assert isinstance(caught.value, OSError)
        assert sorted(tmp_path.rglob("*")) == before
        assert manager.list_snapshots() == [earlier]


class TestBrokenJSON:
    """JSONファイルが破損: said with its path and what to do."""

    @pytest.mark.parametrize("manifest", [True, False])
    def test_broken_json_is_said_with_its_path_and_remedy(
        self, manifest: bool, database: DatabaseURL, command: Command, said: Said
    ) -> None:
        """JSONファイルが破損: found by its checksum, or where it was written by hand; no row is touched."""
        schemas.run(database, TEST_ROWS)
        made = json.loads(command("create", "rows", "--scope", "test-data", "--json")[1])["snapshot"]
        with SnapshotManager(database.text, "snapshots", minimum_free_mb=1) as manager:
            path = manager.get_snapshot("rows").path
            path.write_bytes(path.read_bytes()[:-40] + b"}" * 40)
            if not manifest:
                manager.get_snapshot("rows").manifest_path.unlink()
            options = [] if manifest else ["--trust"]
            told = command("restore", "rows", "--version", made["version"], *options)
            with pytest.raises(JSONCorruptError, match="JSONファイルが破損") as caught:
                manager.restore_snapshot("rows", made["version"], trust=not manifest)

        assert str(path) in told[2]
        said(f"json_broken_{'checksum' if manifest else 'by_hand'}", told, JSONCorruptError)
        assert str(path) in str(caught.value)
        assert schemas.rows_of(database, "SELECT name FROM offices ORDER BY id") == [
            ("本物の事業所",),
            ("テスト事業所",),
        ]


class TestConnectionLoss:
    """The connection is lost: three tries, then all is rolled back."""

    def test_three_tries_and_then_nothing_is_written(
        self, database: DatabaseURL, command: Command, said: Said
    ) -> None:
        """Cut in the middle of each of three loads: exit 12, and no row and no table of any of them."""
        with Proxy(database, after_bytes(200_000), cuts=9) as proxy:
            told = command("generate", "--scale", "small", "--db-url", proxy.url.text)

        said("connection_lost", told, ConnectError, hide={LIBPQ_WORDS: "  server closed the connection"})
        assert proxy.cuts == 3
        assert schemas.rows_of(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [
            (0,)
        ]
        assert json.loads(command("list", "--json")[1]) == []

    def test_the_third_try_may_succeed_and_writes_each_row_once(self, database: DatabaseURL) -> None:
        """The same outage, over after two tries: nobody has to do anything."""
        with Proxy(database, after_bytes(200_000), cuts=2) as proxy:
            done = generate("keikaku", "small", proxy.url.text, create_tables=True, retry=QUICK)

        assert proxy.cuts == 2
        assert done.rows["welfare_recipients"] == 1000
        assert schemas.rows_of(database, "SELECT count(*) FROM welfare_recipients") == [(1000,)]

    def test_a_factory_tries_three_times_too(self, database: DatabaseURL) -> None:
        """`bulk_create_staffs` on a URL: the library owns the transaction, so it may repeat it."""
        generate("keikaku", "small", database.text, create_tables=True)
        offices = [row[0] for row in schemas.rows_of(database, "SELECT id FROM offices")]
        with Proxy(database, after_bytes(200_000), cuts=9) as proxy, pytest.raises(ConnectError):
            bulk_create_staffs(proxy.url.text, offices, 100, retry=QUICK)

        assert proxy.cuts == 3
        assert schemas.rows_of(database, "SELECT count(*) FROM staffs") == [(101,)]


class TestForeignKey:
    """外部キー制約違反: a message from which one sees the cause and what to do."""

    def test_the_message_says_table_constraint_column_and_remedy(
        self, database: DatabaseURL, said: Said
    ) -> None:
        """外部キー制約違反: offices of a staff that does not exist; the remedy names the system staff."""
        generate("keikaku", "small", database.text, create_tables=True)
        with pytest.raises(ForeignKeyError, match="外部キー制約違反") as caught:
            bulk_create_offices(database.text, 10, created_by=uuid.uuid4())

        said("foreign_key_system_staff", caught.value)
        for word in ("offices", "created_by", "Batch: 1", "staffs", "system staff"):
            assert word in str(caught.value), word
        assert caught.value.__cause__ is not None
        assert schemas.rows_of(database, "SELECT count(*) FROM offices") == [(10,)]

    def test_the_command_line_says_it_too(self, command: Command, tmp_path: Path, said: Said) -> None:
        """外部キー制約違反: a dataset of one's own whose rows refer to nothing."""
        (tmp_path / "shop.py").write_text(
            "import sqlalchemy as sa\n"
            "from keikaku_snapshots.datasets import Dataset, Scale, Table\n"
            "meta = sa.MetaData()\n"
            "shops = sa.Table('shops', meta, sa.Column('id', sa.Integer, primary_key=True),\n"
            "    sa.Column('is_test_data', sa.Boolean))\n"
            "orders = sa.Table('orders', meta, sa.Column('shop_id', sa.ForeignKey(shops.c.id)),\n"
            "    sa.Column('is_test_data', sa.Boolean))\n"
            "def make_shops(shard): return [('1', 't')]\n"
            "def make_orders(shard): return [('1', 't')] * 700 + [('2', 't')]\n"
            "tables = (Table(shops, make_shops, columns=('id', 'is_test_data')),\n"
            "    Table(orders, make_orders, columns=('shop_id', 'is_test_data')))\n"
            "dataset = Dataset('shop', tables, scales=(Scale('small', 1),))\n",
            encoding="utf-8",
        )
        told = command("generate", "--dataset", "shop:dataset", "--scale", "small")

        said("foreign_key", told, ForeignKeyError)
        assert "外部キー制約違反" in told[2]
        assert "Batch: 2" in told[2]
        assert json.loads(command("list", "--json")[1]) == []


class TestRestoreFails:
    """復元に失敗: an error at one table leaves everything as it was."""

    @pytest.mark.parametrize("strategy", ["in_place", "swap"])
    def test_a_restore_that_fails_at_one_table_leaves_everything_as_it_was(
        self, strategy: str, database: DatabaseURL, command: Command, said: Said, tmp_path: Path
    ) -> None:
        """復元に失敗: the table and constraint where it stopped are named; every row is what it was."""
        schemas.run(database, RESTORES_NOWHERE)
        assert command("create", "medium_100_offices")[0] == 0
        schemas.run(database, "INSERT INTO offices VALUES (3); DELETE FROM bookings WHERE office_id = 1")
        before = _rows(database)

        told = command("restore", "medium_100_offices", "--strategy", strategy)
        with (
            SnapshotManager(database.text, tmp_path / "snapshots", minimum_free_mb=1) as manager,
            pytest.raises(RestoreFailedError, match="復元に失敗") as caught,
        ):
            manager.restore_snapshot("medium_100_offices", use_latest=True, strategy=strategy)

        said(f"restore_failed_{strategy}", told, RestoreFailedError)
        assert caught.value.details["table"] == "public.bookings"
        assert caught.value.details["constraint"] == "office_must_exist"
        assert _rows(database) == before

    def test_test_rows_that_one_table_refuses_are_all_as_they_were(
        self, database: DatabaseURL, command: Command, said: Said
    ) -> None:
        """復元に失敗: the same for JSON: a rule that came after the snapshot refuses one row."""
        schemas.run(database, TEST_ROWS)
        command("create", "rows", "--scope", "test-data")
        schemas.run(
            database,
            "UPDATE offices SET name = '変更後' WHERE id = 2;"
            "ALTER TABLE offices ADD CONSTRAINT no_test_names CHECK (name NOT LIKE 'テスト%')",
        )
        told = command("restore", "rows")

        said("restore_failed_rows", told, RestoreFailedError)
        assert "復元に失敗" in told[2]
        assert "no_test_names" in told[2]
        assert schemas.rows_of(database, "SELECT name FROM offices ORDER BY id") == [
            ("本物の事業所",),
            ("変更後",),
        ]


def _rows(url: DatabaseURL) -> dict[str, object]:
    """Every row with the transaction that wrote it."""
    return {table: schemas.rows_of(url, f"SELECT xmin::text, * FROM {table}") for table in TABLES}
