"""Test-data rows as JSON: out of a database and back, and nothing else touched."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    CreateFailedError,
    DatabaseInUseError,
    DiskFullError,
    ForeignKeyError,
    JSONCorruptError,
    RefusedError,
    RestoreFailedError,
    SchemaDriftError,
    TestDataReferencedError,
    UsageError,
)
from tests.integration import schemas
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from tests.conftest import MakeDatabase
    from tests.servers import Server

#: Parents and children, in and out of scope, with everything that makes restoring hard.
SCHEMA = """
CREATE TABLE countries (code text PRIMARY KEY);
CREATE TABLE offices (
  id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, country text REFERENCES countries,
  is_test_data boolean NOT NULL DEFAULT false, touched timestamptz DEFAULT now(),
  shout text GENERATED ALWAYS AS (upper(name)) STORED
);
CREATE TABLE staffs (
  id serial PRIMARY KEY, office integer NOT NULL REFERENCES offices, boss integer REFERENCES staffs,
  email text UNIQUE, is_test_data boolean NOT NULL DEFAULT false
);
ALTER TABLE offices ADD COLUMN head integer CONSTRAINT head REFERENCES staffs;
CREATE TABLE visits (
  at date NOT NULL, office integer REFERENCES offices, is_test_data boolean NOT NULL DEFAULT true
) PARTITION BY RANGE (at);
CREATE TABLE visits_2025 PARTITION OF visits FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE visits_rest PARTITION OF visits DEFAULT;
CREATE TABLE log (what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.log VALUES (TG_OP); NEW.touched := now(); RETURN NEW; END $$;
CREATE TRIGGER noted BEFORE INSERT OR UPDATE ON offices FOR EACH ROW EXECUTE FUNCTION note();
CREATE RULE keep AS ON DELETE TO visits DO INSTEAD NOTHING;

INSERT INTO countries VALUES ('JP'), ('DE');
INSERT INTO offices (name, country, is_test_data) VALUES
  ('本物', 'JP', false), ('試験 1', 'JP', true), ('試験 "2"', 'DE', true);
INSERT INTO staffs (office, boss, email, is_test_data) VALUES
  (1, NULL, 'real@example.com', false), (2, 3, 'a@example.com', true), (2, 2, 'b@example.com', true),
  (1, 1, 'test-in-real-office@example.com', true);
UPDATE offices SET head = 2 WHERE id = 2;
INSERT INTO visits (at, office, is_test_data) VALUES
  ('2025-05-05', 2, true), ('2030-01-01', 3, true), ('2025-06-06', 1, false);
"""

TABLES = ("countries", "offices", "staffs", "visits", "log")


def state(url: DatabaseURL, where: str = "true") -> dict[str, list[Any]]:
    """Every row as text with its place on disk and the transaction that wrote it."""
    with connect(url) as connection:
        return {
            table: connection.execute(
                f"SELECT tableoid::regclass::text, ctid::text, xmin::text, t::text FROM {table} t"
                f" WHERE {where if table not in ('countries', 'log') else 'true'} ORDER BY 1, 2"
            ).fetchall()
            for table in TABLES
        }


def rows(url: DatabaseURL) -> dict[str, list[Any]]:
    """Every row as text."""
    return {table: sorted(row[-1] for row in found) for table, found in state(url).items()}


@pytest.fixture
def manager(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager of a database with test rows and others."""
    schemas.run(database, SCHEMA)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1, lock_timeout_s=0.5) as made:
        yield made


def create(manager: SnapshotManager, name: str = "rows", **options: Any) -> Snapshot:
    """Make a snapshot of the test rows."""
    return manager.create_snapshot(name, scope="test_data", format="json", **options)


def by_hand(manager: SnapshotManager, text: str | bytes, name: str = "hand_v1.json") -> str:
    """Put a file without manifest into the snapshot directory."""
    manager.directory.mkdir(exist_ok=True)
    path = manager.directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


TYPES: dict[str, list[str | None]] = {
    "boolean": ["true", "false", None],
    "smallint": ["-32768", "32767"],
    "bigint": ["-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "real": ["3.4028235e38", "1.17549435e-38", "1e-45", "0.1", "NaN", "-Infinity", "-0", "16777217"],
    "double precision": [
        "1.7976931348623157e308", "2.2250738585072014e-308", "5e-324", "0.1", "-0", "NaN", "Infinity", "1e22",
    ],
    "numeric": ["NaN", "Infinity", "-Infinity", "1.50", "0.000", f"1{'0' * 2000}.{'7' * 1000}", "-0.10"],
    "numeric(12,2)": ["12.50", "9999999999.99"],
    "money": ["$1,234,567.89", "-$0.01"],
    "text": [
        "", "NULL", "null", "\\N", 'tab\tnew\nline\rback\\slash "quoted"', "日本語 \U0001f600",
        "\x01\x7f\u2028",
    ],
    "varchar(5)": ["a  ", "日本"],
    "char(5)": ["ab", "     "],
    '"char"': ["x", "\\200"],
    "name": ["n"],
    "bytea": ["\\x", "\\x00ff5c0a", "\\x" + "ab" * 3000],
    "date": ["4713-01-01 BC", "infinity", "-infinity", "5874897-12-31", "2024-02-29"],
    "time": ["24:00:00", "00:00:00.000001"],
    "timetz": ["12:00:00.5+09", "23:59:59-15:59"],
    "timestamp": ["0001-01-01 00:00:00 BC", "infinity", "294276-12-31 23:59:59.999999"],
    "timestamptz": ["2024-06-01 12:34:56.789+09", "0044-03-15 12:00:00+00 BC", "-infinity"],
    "interval": ["1 year 2 mons -3 days 04:05:06.789", "-00:00:00.000001", "178000000 years", "@ 1 day ago"],
    "uuid": ["00000000-0000-0000-0000-000000000001"],
    "json": [
        "{}", '{"b":1,  "a" : 2, "a": [3,{"x":null}]}', "null", "1.10", '"text"', " [1,2 ] ", "true",
        '{"\\u0041": "\\ud83d\\ude00", "n": 1e400}', "[\n 1,\n 2]", '"a\\"]"', '["]", "\\\\", "{"]',
    ],
    "jsonb": ["{}", '{"b": 1.10, "a": {"c": [1, null, "]}\\""]}}', "null", "5", '"x"', "[]", "false", None],
    "jsonb[]": ['{"{\\"a\\": 1}",NULL,"null"}', "{}"],
    "text[]": ['{a,NULL,"NULL","","with \\"quotes\\", {braces}"}', "[2:3]={x,y}", "{{1,2},{3,4}}", "{}"],
    "integer[]": ["{1,NULL,3}"],
    "timestamptz[]": ['{"2024-01-01 00:00:00+09"}'],
    "int4range": ["[1,10)", "empty", "(,)", "(,5)"],
    "numrange": ["(1.50,2.5]"],
    "tstzrange": ['["2024-01-01 00:00:00+00",infinity)'],
    "int4multirange": ["{[1,3),[5,9)}", "{}"],
    "datemultirange": ["{[2024-01-01,2024-02-01)}"],
    "bit(5)": ["10101"],
    "bit varying": ["", "1"],
    "inet": ["192.168.1.5/24", "::1", "10.0.0.1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "tsvector": ["'fat':2A 'cat':1,3B", "'it''s':1"],
    "tsquery": ["'fat' & ( 'rat' | 'cat' )"],
    "xml": ["<a b='c'>text</a>", "text and <b/>"],
    "point": ["(1.5,-2)"],
    "polygon": ["((0,0),(1,1),(1,0))"],
    "circle": ["<(0,0),1e-10>"],
    "pg_lsn": ["16/B374D848"],
    "oid": ["4294967295"],
    "regclass": ["public.mood_table"],
    "regtype": ["public.mood", "integer"],
    "mood": ["happy", "元気", "with 'quote", None],
    "mood[]": ["{happy,元気}"],
    "percent": ["0", "99.50"],
    "percents": ["{1,2.50}"],
    "doubly": ["5"],
    "flag": ["true"],
    "document": ['{"a":  1}'],
    "address": ['("12-3 ""x""",,happy,"{1,NULL}")', "(,,,)"],
    "address[]": ['{"(a,1,happy,{})"}'],
    "spans": ["[1.5,2.5)"],
}  # fmt: skip

TYPE_SCHEMA = """
CREATE TYPE mood AS ENUM ('happy', '元気', 'with ''quote');
CREATE DOMAIN percent AS numeric CHECK (VALUE BETWEEN 0 AND 100);
CREATE DOMAIN percents AS numeric[];
CREATE DOMAIN small AS integer; CREATE DOMAIN doubly AS small CHECK (VALUE > 0);
CREATE DOMAIN flag AS boolean; CREATE DOMAIN document AS json;
CREATE TYPE address AS (street text, number integer, mood mood, tags integer[]);
CREATE TYPE spans AS RANGE (subtype = float8);
CREATE TABLE mood_table (id integer);
"""


def test_every_type_comes_back_exactly(
    each_server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """B12, item 14: the text of every value is the same, under settings of the database that differ."""
    url = make_database(each_server)
    # The wheel's servers are built without libxml; the type is there, values are not.
    columns = [kind for kind in TYPES if kind != "xml" or each_server.major == 15]
    depth = max(map(len, TYPES.values()))
    with connect(url) as connection:
        connection.execute(TYPE_SCHEMA)
        definitions = ", ".join(f"c{number} {kind}" for number, kind in enumerate(columns))
        connection.execute(
            f"CREATE TABLE everything (id integer PRIMARY KEY, is_test_data boolean NOT NULL, {definitions})"
        )
        for row in range(depth):
            values = [TYPES[kind][row] if row < len(TYPES[kind]) else None for kind in columns]
            holders = ", ".join(f"%s::{kind}" for kind in columns)
            connection.execute(f"INSERT INTO everything VALUES (%s, true, {holders})", [row, *values])
        # What comes back must not depend on how the database or role writes values.
        for setting in (
            "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "bytea_output = 'escape'",
            "extra_float_digits = -10", "TimeZone = 'Asia/Kolkata'", "xmloption = 'document'",
        ):  # fmt: skip
            connection.execute(f'ALTER DATABASE "{url.database}" SET {setting}')
    before = _exact(url)
    for compression in ("zstd", None, "gzip"):
        with SnapshotManager(url, tmp_path / str(compression), minimum_free_mb=1) as manager:
            made = create(manager, compression=compression)
            manager.verify_snapshot("rows")
            with connect(url) as connection:
                connection.execute("UPDATE everything SET c0 = NULL; DELETE FROM everything WHERE id > 2")
            manager.restore_snapshot("rows")
        assert _exact(url) == before
        text = made.path.read_bytes()
        if compression is not None:
            unpacked = zstandard.ZstdDecompressor().decompressobj()
            text = gzip.decompress(text) if compression == "gzip" else unpacked.decompress(text)
        document = json.loads(text)
        assert list(document) == ["name", "created_at", "description", "schema_version", "stats", "tables"]
        assert document["stats"] == {"public.everything": depth}
    first = document["tables"]["public.everything"][0]
    by_type = {kind: first[f"c{number}"] for number, kind in enumerate(columns)}
    assert by_type["boolean"] is True
    assert by_type["smallint"] == -32768
    assert by_type["bigint"] == "-9223372036854775808"
    assert by_type["jsonb"] == {}
    assert by_type["numeric"] == "NaN"
    third = {
        kind: document["tables"]["public.everything"][2][f"c{number}"] for number, kind in enumerate(columns)
    }
    assert (third["boolean"], third["jsonb"], third["json"]) == (None, "null", "null")


def _exact(url: DatabaseURL) -> list[Any]:
    with connect(url) as connection:
        connection.execute("SET extra_float_digits = 3")
        connection.execute("SET xmloption = 'content'")
        return connection.execute("SELECT e::text, c0 IS NULL FROM everything e ORDER BY id").fetchall()


def test_rows_outside_the_scope_are_untouched_to_the_byte(manager: SnapshotManager) -> None:
    """B12: not rewritten, not locked into another shape, no trigger fires, no rule stands in the way."""
    create(manager)
    whole, outside = rows(manager.url), state(manager.url, "NOT is_test_data")
    schemas.run(
        manager.url,
        "ALTER TABLE visits DISABLE RULE keep; DELETE FROM visits WHERE is_test_data;"
        "ALTER TABLE visits ENABLE RULE keep; UPDATE offices SET head = NULL WHERE is_test_data;"
        "UPDATE staffs SET email = 'x' || email WHERE is_test_data; TRUNCATE log;"
        "INSERT INTO staffs (office, email, is_test_data) VALUES (1, 'new', true)",
    )
    outside["log"] = state(manager.url)["log"]
    whole["log"] = rows(manager.url)["log"]
    restored = manager.restore_snapshot("rows")
    assert rows(manager.url) == whole
    assert state(manager.url, "NOT is_test_data") == outside
    assert restored.strategy == "in_place"
    with connect(manager.url) as connection:
        enabled = connection.execute(
            "SELECT (SELECT tgenabled::text FROM pg_trigger WHERE tgname = 'noted'),"
            " (SELECT ev_enabled::text FROM pg_rewrite WHERE rulename = 'keep'),"
            " (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND condeferrable)"
        ).fetchone()
        assert enabled == ("O", "O", 0)
        following = connection.execute("INSERT INTO offices (name) VALUES ('next') RETURNING id").fetchone()
        assert following == (4,)
        assert connection.execute("SELECT nextval('staffs_id_seq') > 4").fetchone() == (True,)


def test_the_file_can_be_read_by_people_and_says_what_is_in_it(manager: SnapshotManager) -> None:
    """B12: the layout, one row a line, in order of the keys; made again it is the same but for the time."""
    made = create(manager, description="説明", tags=["t"], metadata={"seed": 1})
    assert made.path.name == f"rows_{made.version}.json"
    text = made.path.read_text(encoding="utf-8")
    assert '      {"id": 2, "name": "試験 1", "country": "JP", "is_test_data": true, ' in text
    document = json.loads(text)
    assert document["description"] == "説明"
    assert (
        document["stats"] == made.row_counts == {"public.offices": 2, "public.staffs": 3, "public.visits": 2}
    )
    assert [row["id"] for row in document["tables"]["public.staffs"]] == [4, 3, 2]  # by office, boss, id
    assert "shout" not in document["tables"]["public.offices"][0]
    manifest = made.manifest
    assert manifest is not None
    assert (manifest.scope, manifest.format, manifest.marker) == ("test_data", "json", "is_test_data")
    again = create(manager).path.read_text(encoding="utf-8")
    assert [
        line for line in again.splitlines() if "created_at" not in line and "description" not in line
    ] == [line for line in text.splitlines() if "created_at" not in line and "description" not in line]
    assert manager.verify_snapshot("rows").checks[-1] == "JSON read as a whole"


def test_references_from_outside_are_counted_and_refused(manager: SnapshotManager) -> None:
    """A12: a cascade never decides, and nothing was changed."""
    create(manager)
    schemas.run(
        manager.url,
        "CREATE TABLE notes (office integer REFERENCES offices ON DELETE CASCADE);"
        "INSERT INTO notes VALUES (2), (2), (1); UPDATE staffs SET office = 3 WHERE id = 1",
    )
    before = state(manager.url)
    with pytest.raises(TestDataReferencedError, match="外部キー制約違反") as caught:
        manager.restore_snapshot("rows")
    assert "public.notes: 2 rows refer to test rows of public.offices" in caught.value.found
    assert "public.staffs: 1 rows refer to test rows of public.offices" in caught.value.found
    assert state(manager.url) == before


def test_rows_that_refer_to_rows_that_are_not_there_are_counted_and_refused(
    manager: SnapshotManager, caplog: pytest.LogCaptureFixture
) -> None:
    """B12: told when the snapshot is made, refused before anything changes, in scope or not."""
    create(manager)
    assert "public.staffs: 1 test rows refer to rows of public.offices" in caplog.text
    assert "public.offices: 2 test rows refer to rows of public.countries" in caplog.text
    schemas.run(
        manager.url,
        "UPDATE offices SET country = NULL WHERE country = 'DE'; DELETE FROM countries WHERE code = 'DE';"
        "DELETE FROM staffs WHERE office = 1; ALTER TABLE visits DISABLE RULE keep;"
        "DELETE FROM visits WHERE office = 1; DELETE FROM offices WHERE id = 1",
    )
    before = state(manager.url)
    with pytest.raises(ForeignKeyError, match="外部キー制約違反") as caught:
        manager.restore_snapshot("rows")
    lines = caught.value.found.splitlines()
    assert lines[0].startswith("public.offices: 1 rows refer to rows of public.countries that are neither")
    assert lines[1].startswith("public.staffs: 1 rows refer to rows of public.staffs")
    assert lines[2].startswith("public.staffs: 1 rows refer to rows of public.offices")
    assert state(manager.url) == before


def test_everything_that_the_schema_lacks_is_named_before_anything_is_touched(
    manager: SnapshotManager,
) -> None:
    """B7, items 6 and 17: tables, columns, and new columns that must have a value, all at once."""
    create(manager)
    schemas.run(
        manager.url,
        "DROP TABLE visits; ALTER TABLE staffs DROP COLUMN email, ADD COLUMN must text;"
        "UPDATE staffs SET must = ''; ALTER TABLE staffs ALTER COLUMN must SET NOT NULL;"
        "CREATE DOMAIN always AS integer NOT NULL;"
        "ALTER TABLE offices ADD COLUMN free text, ADD COLUMN filled text NOT NULL DEFAULT ''",
    )
    with pytest.raises(SchemaDriftError, match="スキーマバージョンが一致しません") as caught:
        manager.restore_snapshot("rows")
    assert "table public.visits is missing" in caught.value.found
    assert "table public.staffs: column email is missing" in caught.value.found
    schemas.run(manager.url, "ALTER TABLE staffs ADD COLUMN email text; CREATE TABLE visits (LIKE log)")
    schemas.run(
        manager.url, "DROP TABLE visits; CREATE TABLE visits (at date, office integer, is_test_data bool)"
    )
    with pytest.raises(SchemaDriftError) as caught:
        manager.restore_snapshot("rows")
    assert "table public.staffs: column must (text) is NOT NULL without a default" in caught.value.found
    assert "free" not in caught.value.found
    schemas.run(manager.url, "ALTER TABLE staffs ALTER COLUMN must DROP NOT NULL")
    with pytest.raises(SchemaDriftError, match="another schema"):
        manager.restore_snapshot("rows", on_schema_mismatch="error")
    warnings = manager.restore_snapshot("rows").warnings
    assert any("スキーマバージョンが一致しません" in line for line in warnings)


def test_broken_json_is_told_by_checksum_size_and_parser(manager: SnapshotManager) -> None:
    """Item 5: `JSONファイルが破損` with path and remedy, whoever notices it, and no row was touched."""
    made = create(manager)
    whole, before = made.path.read_bytes(), state(manager.url)
    for damaged in (whole.replace(b'"name": "', b'"name"! "', 1), whole[:-5], b""):
        made.path.write_bytes(damaged)
        for act in (manager.restore_snapshot, manager.verify_snapshot):
            with pytest.raises(JSONCorruptError, match="JSONファイルが破損") as caught:
                act("rows")
            assert str(made.path) in str(caught.value) or made.version in str(caught.value)
            assert "To fix this: " in str(caught.value)
    place = by_hand(manager, whole.replace(b'"name": "\xe8', b'"name": \xe8', 1))
    with pytest.raises(JSONCorruptError, match="JSONファイルが破損") as caught:
        manager.restore_snapshot("hand", trust=True)
    assert f"{place}: line " in caught.value.found
    by_hand(manager, gzip.compress(whole)[:-20], "packed_v1.json.gz")
    with pytest.raises(JSONCorruptError, match="too early"):
        manager.restore_snapshot("packed", trust=True)
    assert state(manager.url) == before


def test_a_value_that_its_column_refuses_is_told_with_table_and_row(manager: SnapshotManager) -> None:
    """B2: the place is in the text, the value is not."""
    before = state(manager.url)
    for text, problem in (
        ('{"tables": {"offices": [{"name": "a"}, {"name": {"secret": 1}}]}}', "row 2"),
        ('{"tables": {"offices": [{"name": "a", "head": "secret"}]}}', "head"),
    ):
        by_hand(manager, text)
        with pytest.raises((JSONCorruptError, RestoreFailedError)) as caught:
            manager.restore_snapshot("hand", trust=True)
        assert problem in str(caught.value)
        assert "offices" in str(caught.value)
        assert "secret" not in str(caught.value)
    assert state(manager.url) == before


def test_a_file_made_by_hand_is_enough(manager: SnapshotManager) -> None:
    """B12: bare table names, rows with different columns, arrays, no stats; the marker is implied."""
    schemas.run(manager.url, "ALTER TABLE offices ADD COLUMN tags text[] DEFAULT '{none}'")
    by_hand(
        manager,
        """{"schema_version": "1", "stats": {"staffs": 5},
        "tables": {
          "staffs":  [ {"id": 100, "office": 50, "boss": 100}, {"office": 50, "email": "x"} ],
          "visits": [],
          "public.offices": [
            {"id": 50, "name": "by hand", "tags": ["a", null, "b c"], "shout": "ignored"},
            {"name": "with defaults", "id": 51}]
        }}""",
    )
    restored = manager.restore_snapshot("hand", trust=True)
    assert any("stats say 5 rows of staffs, the file has 2" in line for line in restored.warnings)
    with connect(manager.url) as connection:
        found = connection.execute(
            "SELECT id, name, tags, shout FROM offices WHERE is_test_data ORDER BY id"
        ).fetchall()
        assert found == [
            (50, "by hand", ["a", None, "b c"], "BY HAND"),
            (51, "with defaults", ["none"], "WITH DEFAULTS"),
        ]
        assert connection.execute("SELECT count(*) FROM staffs WHERE is_test_data").fetchone() == (2,)
        assert connection.execute("INSERT INTO offices (name) VALUES ('x') RETURNING id").fetchone() == (52,)


def test_rows_that_are_not_marked_never_come_in(manager: SnapshotManager) -> None:
    """The next restore would not find them again."""
    by_hand(
        manager, '{"tables": {"offices": [{"name": "a", "is_test_data": false}], "staffs": [], "visits": []}}'
    )
    with pytest.raises(RefusedError, match="not test data"):
        manager.restore_snapshot("hand", trust=True)


def test_a_table_without_the_marker_is_not_guessed_about(manager: SnapshotManager) -> None:
    """A12: with rows that cannot be told apart nothing is deleted; adding to them is possible."""
    by_hand(manager, '{"tables": {"countries": [{"code": "FR"}]}}')
    with pytest.raises(SchemaDriftError, match="no column is_test_data"):
        manager.restore_snapshot("hand", trust=True)
    manager.restore_snapshot("hand", trust=True, clean_existing=False)
    assert rows(manager.url)["countries"] == ["(DE)", "(FR)", "(JP)"]


def test_existing_test_rows_stay_when_asked(manager: SnapshotManager) -> None:
    """`clean_existing=False` adds; what collides is an error and changes nothing."""
    create(manager)
    before = rows(manager.url)
    with pytest.raises(RestoreFailedError, match="一意制約違反"):
        manager.restore_snapshot("rows", clean_existing=False)
    assert rows(manager.url) == before
    schemas.run(
        manager.url,
        "ALTER TABLE visits DISABLE RULE keep; DELETE FROM visits WHERE is_test_data;"
        "UPDATE offices SET head = NULL; DELETE FROM staffs WHERE is_test_data;"
        "DELETE FROM offices WHERE is_test_data; TRUNCATE log;"
        "INSERT INTO offices (name, is_test_data) VALUES ('stays', true)",
    )
    manager.restore_snapshot("rows", clean_existing=False)
    assert len(rows(manager.url)["offices"]) == len(before["offices"]) + 1


def test_another_column_or_a_condition_may_say_what_test_data_is(manager: SnapshotManager) -> None:
    """Issue item 2: both are options, and the manifest remembers them for the restore."""
    schemas.run(
        manager.url,
        "CREATE TABLE orders (id integer PRIMARY KEY, number text, demo boolean);"
        "INSERT INTO orders VALUES (1, 'T-1', NULL), (2, 'R-2', true), (3, 'T-3', false)",
    )
    made = create(manager, "demo", marker="demo")
    assert made.row_counts == {"public.orders": 1}
    made = create(
        manager, "numbers", marker="demo", predicates={"orders": "number LIKE 'T-%' -- all of them"}
    )
    assert made.row_counts == {"public.orders": 2}
    schemas.run(manager.url, "UPDATE orders SET demo = true WHERE id <> 2; DELETE FROM orders WHERE id = 3")
    manager.restore_snapshot("numbers")
    with connect(manager.url) as connection:
        found = connection.execute("SELECT id, demo FROM orders ORDER BY id").fetchall()
    assert found == [(1, None), (2, True), (3, False)]
    with pytest.raises(UsageError, match="nothing_like"):
        create(manager, "x", marker="nothing_like_it")
    with pytest.raises(UsageError, match="no such table"):
        create(manager, "x", predicates={"public.ordres": "true"})
    with pytest.raises(UsageError, match="not boolean"):
        create(manager, "x", marker="number")


def test_rows_that_the_role_may_not_see_are_an_error_not_a_gap(
    server: Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """FAULTS 18: row security would make the snapshot smaller without a word."""
    url = make_database(server, "keikaku_owner")
    schemas.run(
        url,
        "CREATE TABLE a (id integer, is_test_data boolean); INSERT INTO a VALUES (1, true);"
        "ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON a USING (id > 1)",
    )
    with SnapshotManager(url, tmp_path / "s", minimum_free_mb=1) as manager:
        create(manager)
        manager.restore_snapshot("rows")
        schemas.run(url, "ALTER TABLE a FORCE ROW LEVEL SECURITY")
        for act in (lambda: create(manager), lambda: manager.restore_snapshot("rows")):
            with pytest.raises((CreateFailedError, PermissionError, RestoreFailedError)):
                act()
    with connect(url) as connection:
        connection.execute("ALTER TABLE a NO FORCE ROW LEVEL SECURITY")
        assert connection.execute("SELECT count(*) FROM a").fetchone() == (1,)


def test_a_session_in_the_way_is_named(manager: SnapshotManager) -> None:
    """B8: the restore gives up after its lock timeout, and names who holds the table."""
    create(manager)
    with connect(manager.url) as other:
        other.autocommit = False
        other.execute("UPDATE offices SET name = name WHERE id = 1")
        with pytest.raises(DatabaseInUseError) as caught:
            manager.restore_snapshot("rows")
        assert f"pid {other.info.backend_pid}" in caught.value.found


def test_circles_and_restricted_references_are_no_obstacle(database: DatabaseURL, tmp_path: Path) -> None:
    """Circles of tables go at once and come with checks at the end; the constraints are as before."""
    schemas.run(
        database,
        "CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL, is_test_data bool NOT NULL);"
        "CREATE TABLE b (id int PRIMARY KEY, c int NOT NULL, is_test_data bool NOT NULL);"
        "CREATE TABLE c (id int PRIMARY KEY, a int NOT NULL REFERENCES a ON DELETE RESTRICT,"
        "  is_test_data bool NOT NULL);"
        "ALTER TABLE a ADD CONSTRAINT ab FOREIGN KEY (b) REFERENCES b ON DELETE RESTRICT"
        "  DEFERRABLE INITIALLY IMMEDIATE;"
        "ALTER TABLE b ADD CONSTRAINT bc FOREIGN KEY (c) REFERENCES c;"
        "BEGIN; ALTER TABLE b ALTER CONSTRAINT bc DEFERRABLE INITIALLY DEFERRED;"
        "SET CONSTRAINTS ALL DEFERRED;"
        "INSERT INTO a SELECT i, i, i < 4 FROM generate_series(1, 5) i;"
        "INSERT INTO b SELECT i, i, i < 4 FROM generate_series(1, 5) i;"
        "INSERT INTO c SELECT i, i, i < 4 FROM generate_series(1, 5) i;"
        "SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE b ALTER CONSTRAINT bc NOT DEFERRABLE; COMMIT",
    )
    query = (
        "SELECT (SELECT array_agg(x::text ORDER BY id) FROM a x),"
        " (SELECT array_agg(x::text ORDER BY id) FROM b x), (SELECT array_agg(x::text ORDER BY id) FROM c x),"
        " (SELECT array_agg(pg_get_constraintdef(oid) ORDER BY conname) FROM pg_constraint"
        "  WHERE contype = 'f')"
    )
    with connect(database) as connection, SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        before = connection.execute(query).fetchone()
        create(manager)
        connection.execute("DELETE FROM a USING b, c WHERE false")
        manager.restore_snapshot("rows")
        assert connection.execute(query).fetchone() == before


def test_names_in_checks_mean_what_they_always_mean(database: DatabaseURL, tmp_path: Path) -> None:
    """A check that calls a function with bare names sees the tables, not our copies of the same name."""
    schemas.run(
        database,
        "CREATE TABLE limits (least integer); INSERT INTO limits VALUES (5);"
        "CREATE TABLE a (id integer PRIMARY KEY, is_test_data boolean);"
        "CREATE FUNCTION enough(integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
        " RETURN $1 >= (SELECT least FROM limits) AND (SELECT count(*) < 1 FROM a WHERE id = 10); END $$;"
        "INSERT INTO a VALUES (7, true), (8, false);"
        "ALTER TABLE a ADD CHECK (enough(id))",
    )
    with SnapshotManager(database, tmp_path / "s", minimum_free_mb=1) as manager:
        create(manager)
        manager.restore_snapshot("rows")
        # When 9 and 10 are checked, 10 is in the copy of the file only.
        by_hand(manager, '{"tables": {"a": [{"id": 9}, {"id": 10}]}}')
        manager.restore_snapshot("hand", trust=True)


def test_a_condition_that_the_server_refuses_is_a_failed_create(manager: SnapshotManager) -> None:
    """Item 9: nothing is published, and the server's words are in the text."""
    with pytest.raises((CreateFailedError, UsageError), match=r"syntax error|missing"):
        create(manager, predicates={"public.offices": "name LIKE LIKE"})
    assert manager.list_snapshots() == []


_SCRIPT = """
import os, sys
from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.snapshots import rows_restore, rows_staging
{patch}
with SnapshotManager({url!r}, {directory!r}, minimum_free_mb=1) as manager:
    manager.restore_snapshot("rows")
"""


@pytest.mark.parametrize(
    "patch",
    [
        "rows_restore.RestoreRows._lock = lambda *a: os.kill(os.getpid(), 9)",
        "rows_staging.Staging.insert = lambda *a: os.kill(os.getpid(), 9)",
        "rows_restore.commit = lambda *a: os.kill(os.getpid(), 9)",
    ],
)
def test_a_process_killed_in_the_middle_leaves_the_database_as_it_was(
    manager: SnapshotManager, patch: str
) -> None:
    """B2, item 2: in every phase, up to the last moment before COMMIT."""
    create(manager)
    schemas.run(manager.url, "UPDATE staffs SET email = 'changed' WHERE id = 2")
    before = state(manager.url)
    script = _SCRIPT.format(patch=patch, url=manager.url.text, directory=str(manager.directory))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr
    assert state(manager.url) == before
    manager.restore_snapshot("rows")  # no lock is left behind


def test_a_full_disk_leaves_nothing_behind(manager: SnapshotManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6, item 8: `ディスク容量不足`, found beforehand or half-way."""

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("keikaku_snapshots.snapshots.packed_file.os.write", full)
        with pytest.raises(DiskFullError, match="ディスク容量不足"):
            create(manager)
    assert [path.name for path in manager.directory.iterdir() if path.is_file() and "rows" in path.name] == []


_MEASURE = """
import resource, sys
from keikaku_snapshots import SnapshotManager
with SnapshotManager(sys.argv[1], sys.argv[2], minimum_free_mb=1) as manager:
    manager.create_snapshot("rows", scope="test_data", format="json")
    manager.restore_snapshot("rows")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_rows(database: DatabaseURL, tmp_path: Path) -> None:
    """B12, item 15: 200,000 rows take what 2,000 take, out and back."""
    schemas.run(database, "CREATE TABLE a (id integer PRIMARY KEY, t text, is_test_data boolean)")
    peaks = []
    for count in (2_000, 200_000):
        schemas.run(
            database,
            "TRUNCATE a; INSERT INTO a SELECT i, repeat('日本語 ' || i, 10), true"
            f" FROM generate_series(1, {count}) i",
        )
        command = [sys.executable, "-c", _MEASURE, database.text, str(tmp_path / str(count))]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(ended.stdout) / 1024)
    assert peaks[1] < peaks[0] + 12, peaks


def test_gzip_makes_the_keikaku_dataset_small(database: DatabaseURL, tmp_path: Path) -> None:
    """Item 26: at most 15 % of the JSON; and the dataset comes back to the byte."""
    from keikaku_snapshots.datasets import generate, get_scale

    generate("keikaku", get_scale("small"), database.text, create_tables=True)
    with SnapshotManager(database, tmp_path, minimum_free_mb=1) as manager:
        packed = create(manager, "packed", compression="gzip")
        assert packed.path.name.endswith(".json.gz")
        before = create(manager, "plain")
        assert packed.size_bytes <= 0.15 * before.size_bytes, packed.size_bytes / before.size_bytes
        generate("keikaku", get_scale("small"), database.text, seed=5)
        manager.restore_snapshot("packed")
        after = create(manager, "plain")
        assert _body(before) == _body(after)


def _body(made: Snapshot) -> Any:
    return json.loads(made.path.read_text(encoding="utf-8"))["tables"]
