"""What the catalog says, on every version."""
# ruff: noqa: E501 - SQL reads better in long lines

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.postgres import catalog
from keikaku_snapshots.postgres.catalog import SequenceState, TableName
from keikaku_snapshots.postgres.connect import connect
from keikaku_snapshots.postgres.databases import obstacles_to_writing

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests import servers
    from tests.conftest import MakeDatabase

RICH = """
CREATE SCHEMA s;
CREATE TYPE s.mood AS ENUM ('ok', 'it''s');
CREATE DOMAIN s.age AS int CHECK (VALUE >= 0);
CREATE TYPE s.pair AS (a int, b text);
CREATE TYPE s.span AS RANGE (subtype = date);
CREATE FUNCTION s.one(int) RETURNS int LANGUAGE sql AS $$ SELECT 1 $$;
CREATE PROCEDURE s.none() LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE AGGREGATE s.total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE TABLE s.offices (id uuid PRIMARY KEY, name varchar(80) NOT NULL DEFAULT 'x',
    status varchar(20) CHECK (status IN ('active', 'it''s over')), tags text[] DEFAULT '{}');
ALTER TABLE s.offices ADD CONSTRAINT long_name CHECK (length(name) > 2) NOT VALID;
CREATE TABLE s.staffs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, office uuid REFERENCES s.offices ON DELETE CASCADE
    DEFERRABLE, mood s.mood, age s.age, both_names text GENERATED ALWAYS AS (id::text || 'x') STORED, pair s.pair);
CREATE TABLE s.logs (id serial, day date NOT NULL, staff bigint REFERENCES s.staffs, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE s.logs_25 PARTITION OF s.logs FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE s.logs_rest PARTITION OF s.logs DEFAULT;
CREATE TABLE s.base (a int); CREATE TABLE s.heir (b int) INHERITS (s.base);
CREATE INDEX ON s.staffs (lower(both_names)) WHERE age > 3;
CREATE VIEW s.active AS SELECT id, status FROM s.offices WHERE status IN ('active', 'b');
CREATE MATERIALIZED VIEW s.counted AS SELECT count(*) AS n FROM s.staffs;
CREATE FUNCTION s.trg() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON s.staffs FOR EACH ROW EXECUTE FUNCTION s.trg();
CREATE RULE quiet AS ON DELETE TO s.base DO INSTEAD NOTHING;
ALTER TABLE s.offices ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON s.offices FOR SELECT TO PUBLIC USING (status = 'active');
CREATE TABLE s.slots (during int4range, EXCLUDE USING gist (during WITH &&));
CREATE STATISTICS s.stat ON id, office FROM s.staffs;
CREATE PUBLICATION pub FOR TABLE s.staffs;
COMMENT ON COLUMN s.offices.name IS 'name';
COMMENT ON TABLE s.offices IS '事業所';
CREATE SEQUENCE s.free INCREMENT -2 START 100 MAXVALUE 100 MINVALUE -100 CYCLE CACHE 3;
CREATE UNLOGGED TABLE s.cache (k text);
ALTER TABLE s.staffs REPLICA IDENTITY FULL;
"""


def _restored(server: servers.Server, source: DatabaseURL, target: DatabaseURL, directory: Path) -> None:
    """Copy by the plain tools, nothing of the package in between."""
    environment = {
        **os.environ,
        "PGHOST": str(source.host),
        "PGPORT": str(source.port),
        "PGUSER": source.user,
        "PGPASSWORD": source.password or "",
    }
    file = directory / "dump.sql"
    subprocess.run([server.bin / "pg_dump", "-f", file, source.database], env=environment, check=True)
    subprocess.run(
        [
            server.bin / "psql",
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-o",
            os.devnull,
            "-f",
            file,
            target.database,
        ],
        env=environment,
        check=True,
    )


def test_a_restored_copy_has_the_same_fingerprint(
    each_server: servers.Server, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Otherwise every restore of a snapshot would warn of drift."""
    source, target = make_database(each_server), make_database(each_server)
    with connect(source, autocommit=True) as connection:
        connection.execute(RICH)
        connection.execute("ALTER TABLE s.offices DROP COLUMN tags, ADD COLUMN more int")
        before = catalog.fingerprint(connection)
    _restored(each_server, source, target, tmp_path)
    with connect(target) as connection:
        after = catalog.fingerprint(connection)

    assert catalog.difference(before.objects, after.objects) == []
    assert after.digest == before.digest
    assert after.same_schema(before)


def test_names_and_types_are_the_same_on_every_version(
    pytestconfig: pytest.Config,
    server: servers.Server,
    make_database: MakeDatabase,
    each_server: servers.Server,
) -> None:
    """docs/design.md, Valid files: compared within one major version, else by names and types."""
    del pytestconfig
    digests = []
    for one in (server, each_server):
        with connect(make_database(one), autocommit=True) as connection:
            connection.execute(RICH)
            digests.append(catalog.fingerprint(connection).names_digest)

    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("ALTER TABLE s.offices ALTER name TYPE text", "column name: character varying(80)"),
        ("ALTER TABLE s.offices ALTER name DROP DEFAULT", "column name:"),
        ("ALTER TABLE s.offices ALTER name DROP NOT NULL", "column name:"),
        ("ALTER TABLE s.offices ADD n int NOT NULL", "new column n integer NOT NULL without default"),
        ("ALTER TABLE s.offices DROP tags", "column tags is gone"),
        ("ALTER TABLE s.offices RENAME TO places", "new table s.places"),
        ("ALTER TABLE s.offices VALIDATE CONSTRAINT long_name", "long_name"),
        ("CREATE INDEX extra ON s.offices (name)", "new index s.extra"),
        ("ALTER TYPE s.mood ADD VALUE 'new'", "enum s.mood"),
        ("ALTER DOMAIN s.age DROP CONSTRAINT age_check", "age_check"),
        ("ALTER TYPE s.pair ADD ATTRIBUTE c int", "composite type s.pair: new column c"),
        (
            "CREATE OR REPLACE FUNCTION s.one(int) RETURNS int LANGUAGE sql AS 'SELECT 2'",
            "function s.one(integer)",
        ),
        ("ALTER TABLE s.staffs DISABLE TRIGGER touch", "trigger touch"),
        ("DROP RULE quiet ON s.base", "rule quiet on s.base is gone"),
        ("ALTER POLICY mine ON s.offices USING (true)", "policy mine"),
        ("ALTER TABLE s.offices FORCE ROW LEVEL SECURITY", "forced row security"),
        ("ALTER TABLE s.logs DETACH PARTITION s.logs_rest", "s.logs_rest"),
        ("ALTER SEQUENCE s.free CACHE 7", "sequence s.free"),
        ("CREATE OR REPLACE VIEW s.active AS SELECT id, status FROM s.offices", "view s.active"),
        ("COMMENT ON TABLE s.offices IS 'x'", "comment on table s.offices"),
        ("DROP STATISTICS s.stat", "statistics s.stat is gone"),
        ("ALTER PUBLICATION pub SET (publish = 'insert')", "publication pub"),
        ("ALTER TABLE s.staffs ALTER id SET GENERATED BY DEFAULT", "BY DEFAULT"),
        ("ALTER TABLE s.staffs ALTER mood SET STATISTICS 5", "STATISTICS 5"),
    ],
)
def test_every_kind_of_change_is_seen_and_named(database: DatabaseURL, change: str, line: str) -> None:
    """PEERS 19, B7: the message names what differs."""
    with connect(database, autocommit=True) as connection:
        connection.execute(RICH)
        before = catalog.fingerprint(connection)
        connection.execute(change.encode())
        after = catalog.fingerprint(connection)

    assert before.digest != after.digest
    assert any(line in found for found in catalog.difference(before.objects, after.objects))


def test_what_is_no_schema_change_is_not_seen(database: DatabaseURL) -> None:
    """Rows, statistics, grants, temporary tables and objects of ours are no drift."""
    with connect(database, autocommit=True) as connection:
        connection.execute(RICH)
        before = catalog.fingerprint(connection)
        connection.execute(
            """
            INSERT INTO s.base VALUES (1); TRUNCATE s.base; CREATE TEMP TABLE t (a int); GRANT SELECT ON s.base TO PUBLIC;
            ANALYZE; CREATE SCHEMA keikaku_rewind; CREATE TABLE keikaku_rewind.undo (a int);
            CREATE TABLE s.gone (a int); DROP TABLE s.gone;
            """
        )
        connection.execute("VACUUM FULL s.base")

        assert catalog.fingerprint(connection) == before


def test_the_callers_settings_are_left_as_they_were(database: DatabaseURL) -> None:
    """The search path is the caller's, inside a transaction too."""
    with connect(database) as connection:
        connection.execute("SET search_path TO pg_temp")
        catalog.fingerprint(connection)
        catalog.row_counts(connection)
        row = connection.execute(
            "SELECT current_setting('search_path'), current_setting('row_security')"
        ).fetchone()

    assert row == ("pg_temp", "on")


def test_referenced_tables_come_first(each_server: servers.Server, make_database: MakeDatabase) -> None:
    """Partitions count with their root, heirs after their parents."""
    with connect(make_database(each_server), autocommit=True) as connection:
        connection.execute(RICH)
        names = [name.text for name in catalog.user_tables(connection)]
        keys = {key.table.text: key for key in catalog.foreign_keys(connection)}

    assert names == ["s.base", "s.cache", "s.heir", "s.offices", "s.slots", "s.staffs", "s.logs"]
    assert keys["s.staffs"].references == TableName("s", "offices")
    assert (keys["s.staffs"].deferrable, keys["s.staffs"].on_delete) == (True, "cascade")
    assert set(keys) == {"s.staffs", "s.logs"}


def test_circles_and_self_references_are_reported(database: DatabaseURL) -> None:
    """FAULTS 78: the reference that may be NULL gives way."""
    with connect(database, autocommit=True) as connection:
        connection.execute(
            """
            CREATE TABLE b (id int PRIMARY KEY, a int);
            CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL REFERENCES b, up int REFERENCES a);
            ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a;
            CREATE TABLE "A.b" (id int REFERENCES a);
            """
        )
        order = catalog.table_order(connection)

    assert [name.name for name in order.tables] == ["b", "a", "A.b"]
    assert [[name.name for name in cycle] for cycle in order.cycles] == [["a", "b"]]
    assert [name.name for name in order.self_references] == ["a"]
    assert order.tables[2].text == 'public."A.b"'


def test_rows_are_counted_exactly_and_in_an_exported_snapshot(database: DatabaseURL) -> None:
    """The manifest's counts are those of the dump, whatever is written meanwhile."""
    with (
        connect(database, autocommit=True) as writer,
        connect(database) as holder,
        connect(database) as reader,
    ):
        writer.execute(RICH)
        writer.execute("INSERT INTO s.logs (day) VALUES ('2025-03-03'), ('2025-03-04'), ('2030-01-01')")
        writer.execute("INSERT INTO s.base VALUES (1); INSERT INTO s.heir VALUES (1, 2), (2, 3)")
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = holder.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        writer.execute("INSERT INTO s.base VALUES (2)")
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute(f"SET TRANSACTION SNAPSHOT '{row[0]}'".encode())
        counts = catalog.row_counts(reader)

        assert catalog.row_counts(writer, [TableName("s", "base")]) == {"s.base": 2}
    assert counts == {
        "s.base": 1, "s.cache": 0, "s.heir": 2, "s.logs_25": 2, "s.logs_rest": 1,
        "s.offices": 0, "s.slots": 0, "s.staffs": 0,
    }  # fmt: skip


def test_many_tables_are_counted_in_batches(database: DatabaseURL) -> None:
    """One statement for each fifty."""
    with connect(database, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..120 LOOP EXECUTE format('CREATE TABLE t%s AS SELECT %s', i, i); END LOOP; END $$"
        )

        assert len(catalog.row_counts(connection)) == 120


def test_sequences_go_behind_rows_that_came_with_their_ids(
    each_server: servers.Server, make_database: MakeDatabase
) -> None:
    """FAULTS 82: COPY with ids, then INSERT: duplicate key."""
    with connect(make_database(each_server), autocommit=True) as connection:
        connection.execute(
            """
            CREATE TABLE a (id serial PRIMARY KEY);
            CREATE TABLE "B.c" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
            CREATE SEQUENCE loose; CREATE TABLE c (id int PRIMARY KEY DEFAULT nextval('loose'));
            CREATE SEQUENCE down INCREMENT -2; CREATE TABLE d (id int PRIMARY KEY DEFAULT nextval('down'));
            CREATE SEQUENCE tens INCREMENT 10 START 5; CREATE TABLE e (id int PRIMARY KEY DEFAULT nextval('tens'));
            CREATE TABLE empty (id serial); CREATE TABLE far (id serial); SELECT setval('far_id_seq', 50);
            CREATE TABLE p (id serial, k int) PARTITION BY LIST (k); CREATE TABLE p1 PARTITION OF p DEFAULT;
            INSERT INTO a VALUES (7); INSERT INTO "B.c" OVERRIDING SYSTEM VALUE VALUES (9); INSERT INTO c VALUES (3);
            INSERT INTO d VALUES (-4); INSERT INTO e VALUES (17); INSERT INTO far VALUES (2); INSERT INTO p VALUES (4, 1);
            """
        )
        moved = catalog.reset_sequences(connection, catalog.user_tables(connection))
        for table in ("a", '"B.c"', "c", "d", "e", "empty", "far"):
            connection.execute(f"INSERT INTO {table} DEFAULT VALUES".encode())

        assert moved == {
            "public.a_id_seq": 8, 'public."B.c_id_seq"': 10, "public.loose": 4, "public.down": -5,
            "public.tens": 25, "public.p_id_seq": 5,
        }  # fmt: skip
        assert catalog.sequences(connection)["public.far_id_seq"] == SequenceState(51, is_called=True)
        assert catalog.reset_sequences(connection, catalog.user_tables(connection)) == {}


def test_a_sequence_without_a_value_left_is_an_error(database: DatabaseURL) -> None:
    """Better than an INSERT that fails later."""
    with connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE a (id smallserial); INSERT INTO a VALUES (32767)")

        with pytest.raises(UsageError, match="no value left"):
            catalog.reset_sequences(connection, [TableName("public", "a")])


def test_columns_say_what_can_be_written(database: DatabaseURL) -> None:
    """FAULTS 84: an explicit list of columns without the generated ones."""
    with connect(database, autocommit=True) as connection:
        connection.execute(RICH)
        found = {one.name: one for one in catalog.columns(connection, TableName("s", "staffs"))}

    assert found["both_names"].generated
    assert (found["id"].identity, found["id"].not_null, found["id"].has_default) == ("always", True, True)
    assert not found["mood"].has_default


def test_alembic_heads_are_found_in_any_schema(database: DatabaseURL) -> None:
    """A migration that has two heads has two."""
    with connect(database, autocommit=True) as connection:
        assert catalog.alembic_heads(connection) == []
        connection.execute(
            "CREATE SCHEMA x; CREATE TABLE x.alembic_version (version_num varchar(32));"
            "INSERT INTO x.alembic_version VALUES ('b2'), ('a1')"
        )

        assert catalog.alembic_heads(connection) == ["a1", "b2"]


def test_extensions_and_large_objects_are_listed(server: servers.Server, make_database: MakeDatabase) -> None:
    """FAULTS 71: the manifest needs them; their tables are not the user's."""
    with connect(make_database(server), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector; CREATE TABLE v (e vector(3)); SELECT lo_create(0)")

        found = catalog.extensions(connection)
        assert [(one.name, one.schema, one.owner) for one in found] == [("vector", "public", "postgres")]
        assert catalog.large_object_count(connection) == 1
        assert catalog.database_size_bytes(connection) > 1_000_000
        assert (
            "function public.vector_in(cstring, oid, integer)" not in catalog.fingerprint(connection).objects
        )
        assert [name.name for name in catalog.user_tables(connection)] == ["v"]


def test_owners_and_grants_are_given_back(each_server: servers.Server, make_database: MakeDatabase) -> None:
    """B17: the application's role is never locked out."""
    source, target = make_database(each_server), make_database(each_server)
    with connect(source, autocommit=True) as old, connect(target, autocommit=True) as new:
        for connection in (old, new):
            connection.execute(RICH)
            connection.execute("SELECT lo_create(4711)")
        old.execute(
            """
            ALTER SCHEMA s OWNER TO keikaku_owner; ALTER TABLE s.offices OWNER TO keikaku_owner;
            ALTER TABLE s.logs OWNER TO keikaku_owner;
            ALTER FUNCTION s.one(int) OWNER TO keikaku_creator; ALTER TYPE s.mood OWNER TO keikaku_owner;
            ALTER DOMAIN s.age OWNER TO keikaku_owner; ALTER VIEW s.active OWNER TO keikaku_creator;
            GRANT SELECT, INSERT ON s.offices TO keikaku_creator WITH GRANT OPTION; GRANT ALL ON s.staffs TO keikaku_owner;
            GRANT UPDATE (mood) ON s.staffs TO keikaku_creator; REVOKE EXECUTE ON FUNCTION s.one(int) FROM PUBLIC;
            REVOKE USAGE ON SCHEMA public FROM PUBLIC; GRANT USAGE ON SEQUENCE s.free TO keikaku_owner;
            GRANT SELECT ON LARGE OBJECT 4711 TO keikaku_owner; ALTER LARGE OBJECT 4711 OWNER TO keikaku_creator;
            ALTER DEFAULT PRIVILEGES FOR ROLE keikaku_owner IN SCHEMA s GRANT SELECT ON TABLES TO keikaku_creator;
            ALTER DEFAULT PRIVILEGES FOR ROLE keikaku_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
            ALTER PUBLICATION pub OWNER TO keikaku_creator;
            """
        )
        wanted = catalog.owners_and_grants(old)
        assert catalog.owners_and_grants(new) != wanted

        assert catalog.apply_owners_and_grants(new, wanted) == []
        assert catalog.owners_and_grants(new) == wanted
        questions = """
            SELECT has_schema_privilege('keikaku_owner', 'public', 'USAGE'),
                   has_schema_privilege('keikaku_owner', 's', 'CREATE'),
                   has_table_privilege('keikaku_owner', 's.staffs', 'DELETE'),
                   has_table_privilege('keikaku_creator', 's.offices', 'INSERT WITH GRANT OPTION'),
                   has_column_privilege('keikaku_creator', 's.staffs', 'mood', 'UPDATE'),
                   has_function_privilege('keikaku_owner', 's.one(int)', 'EXECUTE'),
                   has_sequence_privilege('keikaku_owner', 's.free', 'USAGE'),
                   (SELECT count(*) FROM pg_default_acl)
        """
        answers = (False, True, True, True, True, False, True, 2)
        assert [one.execute(questions).fetchone() for one in (old, new)] == [answers, answers]
        assert {"keikaku_owner", "keikaku_creator", "postgres"} <= set(catalog.roles_needed(old))


def test_a_role_that_is_missing_is_a_warning(database: DatabaseURL) -> None:
    """B17: the rest is given back and the missing role is named once."""
    with connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int)")
        warnings = catalog.apply_owners_and_grants(
            connection,
            [
                catalog.OwnershipStatement(
                    "ALTER TABLE public.t OWNER TO nobody_here", ("nobody_here",), "t"
                ),
                catalog.OwnershipStatement("GRANT SELECT ON public.t TO nobody_here", ("nobody_here",), "t"),
                catalog.OwnershipStatement(
                    "ALTER TABLE public.t OWNER TO keikaku_owner", ("keikaku_owner",), "t"
                ),
            ],
        )

        assert len(warnings) == 1
        assert "nobody_here" in warnings[0]
        assert catalog.tables(connection)[0].owner == "keikaku_owner"


def test_a_role_may_not_give_away_what_it_may_not(owner_database: DatabaseURL) -> None:
    """What is refused is named, and nothing else is lost."""
    with connect(owner_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int)")
        warnings = catalog.apply_owners_and_grants(
            connection,
            [
                catalog.OwnershipStatement(
                    "ALTER TABLE public.t OWNER TO postgres", ("postgres",), "table t"
                ),
                catalog.OwnershipStatement(
                    "GRANT SELECT ON public.t TO keikaku_creator", ("keikaku_creator",), "table t"
                ),
            ],
        )

        assert len(warnings) == 1
        assert warnings[0].startswith("table t: ALTER TABLE")
        assert "keikaku_creator" in catalog.roles_needed(connection)


def test_a_database_that_cannot_take_a_restore_says_so(server: servers.Server, database: DatabaseURL) -> None:
    """FAULTS 73: read-only by default, or another encoding: psql rc 3 half-way."""
    with connect(database) as connection:
        assert obstacles_to_writing(connection, encoding="UTF8") == []
        assert "encoding is UTF8" in obstacles_to_writing(connection, encoding="LATIN1")[0]
    with server.admin() as admin:
        admin.execute(f'ALTER DATABASE "{database.database}" SET default_transaction_read_only = on'.encode())
    with connect(database) as connection:
        assert "read_only" in obstacles_to_writing(connection)[0]


@pytest.mark.parametrize(
    ("before", "ddl"),
    [
        ("CREATE EXTENSION vector; CREATE TABLE t (a int)", "ALTER EXTENSION vector ADD TABLE t"),
        (
            """CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);
            CREATE TABLE t (a text); CREATE INDEX ON t USING gin (to_tsvector('words', a))""",
            "ALTER TEXT SEARCH CONFIGURATION words RENAME TO terms",
        ),
        (
            """CREATE OPERATOR CLASS numbers FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=,
            OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int, int);
            CREATE TABLE t (a int); CREATE INDEX ON t (a numbers)""",
            "ALTER OPERATOR CLASS numbers USING btree RENAME TO figures",
        ),
        (
            "CREATE TABLE t (a int); CREATE ROLE keikaku_seen; CREATE POLICY p ON t TO keikaku_seen",
            "ALTER ROLE keikaku_seen RENAME TO keikaku_observed",
        ),
        ("CREATE TABLE t (a int)", "ALTER SEQUENCE s OWNED BY t.a"),
    ],
    ids=["extension", "text search", "operator class", "role", "sequence"],
)
def test_versions_change_wherever_the_fingerprint_does(database: DatabaseURL, before: str, ddl: str) -> None:
    """What is named in a definition is in catalogs of its own; a warm restore asks the versions only."""
    with connect(database, autocommit=True) as connection:
        connection.execute("CREATE SEQUENCE s")
        connection.execute(before.encode())
        first = catalog.fingerprint(connection).digest, catalog.catalog_versions(connection)
        assert first == (catalog.fingerprint(connection).digest, catalog.catalog_versions(connection))
        connection.execute(ddl.encode())
        assert catalog.fingerprint(connection).digest != first[0]
        assert catalog.catalog_versions(connection) != first[1]
        if "ROLE" in ddl:
            connection.execute("DROP TABLE t; DROP ROLE keikaku_observed")
