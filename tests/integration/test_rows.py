"""Test-data rows as JSON: out of a database and back, and nothing else touched."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

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
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.postgres.url import DatabaseURL
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
    "numeric": ["NaN", "Infinity", "-Infinity", "1.50", "0.000", "1" + "0" * 2000 + "." + "7" * 1000, "-0.10"],
    "numeric(12,2)": ["12.50", "9999999999.99"],
    "money": ["$1,234,567.89", "-$0.01"],
    "text": ["", "NULL", "null", "\\N", "tab\tnew\nline\rback\\slash \"quoted\"", "日本語 \U0001f600", "\x01\x7f\u2028"],
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
        '{"\\u0041": "\\ud83d\\ude00", "n": 1e400}', '[\n 1,\n 2]', '"a\\"]"', '["]", "\\\\", "{"]',
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
    for compression in (None, "gzip"):
        with SnapshotManager(url, tmp_path / str(compression), minimum_free_mb=1) as manager:
            made = create(manager, compression=compression)
            manager.verify_snapshot("rows")
            with connect(url) as connection:
                connection.execute("UPDATE everything SET c0 = NULL; DELETE FROM everything WHERE id > 2")
            manager.restore_snapshot("rows")
        assert _exact(url) == before
        text = gzip.decompress(made.path.read_bytes()) if compression else made.path.read_bytes()
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
