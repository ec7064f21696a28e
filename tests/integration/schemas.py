"""The rich schema: one of everything that a restore must bring back exactly.

It is written as the plain owner of a database, so that the same text serves a
superuser and an owner. `READER` and `WRITER` are roles that only hold grants.
"""

# ruff: noqa: E501 - SQL reads better in long lines
from __future__ import annotations

import contextlib
import re
import subprocess
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from tests.servers import connect

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

#: Roles that hold grants in the rich schema; the tests create them once.
READER = "keikaku_reader"
WRITER = "Keikaku Writer"

#: Awkward names: newlines, quotes, dollar signs, Japanese, what looks like a meta-command.
RICH_SCHEMA = r"""
CREATE SCHEMA office;
CREATE SCHEMA "we""ird $$ schema";
COMMENT ON SCHEMA office IS '事業所; with a semicolon, a ''quote'' and a
new line \! not a command';

CREATE TYPE office.role AS ENUM ('employee', 'manager', 'owner''s', '管理者');
CREATE DOMAIN office.percent AS numeric(5,2) DEFAULT 50 CHECK (VALUE BETWEEN 0 AND 100);
CREATE TYPE office.address AS (postcode text, "street line" text, level office.role);
CREATE TYPE office.spans AS RANGE (subtype = date);
CREATE SEQUENCE office.free_numbers START 100 INCREMENT 7 CACHE 1;
CREATE SEQUENCE office.never_used MINVALUE 5 CYCLE;

CREATE FUNCTION office.plus_one(i integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $body$
  -- a body that imitates what a scanner might look for:
  /* COPY office.staffs (id) FROM stdin;
1
\.
  */
  SELECT i + 1;
$body$;
CREATE FUNCTION office.atomic(i integer) RETURNS integer LANGUAGE sql IMMUTABLE
  BEGIN ATOMIC
    SELECT CASE WHEN i > 0 THEN i ELSE 0 END;
    SELECT i + 2;
  END;
CREATE FUNCTION office.imitator() RETURNS text LANGUAGE plpgsql AS $f$
BEGIN
  RETURN 'x
\unrestrict foo
\! touch /tmp/never
COPY office.staffs (id) FROM stdin;
9
\.
SELECT pg_catalog.setval(''office.free_numbers'', 1, false);
BEGIN;
COMMIT;
--
-- PostgreSQL database dump complete
--
';
END $f$;

CREATE TABLE office.staffs (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  email text UNIQUE NOT NULL,
  role office.role NOT NULL DEFAULT 'employee',
  load office.percent,
  home office.address,
  tags text[] DEFAULT '{}',
  preferences jsonb NOT NULL DEFAULT '{"a": "b\\c"}',
  email_lower text GENERATED ALWAYS AS (lower(email)) STORED,
  boss_id bigint,
  note text DEFAULT E'tab\there\\',
  raw bytea,
  made_at timestamptz NOT NULL DEFAULT now(),
  dropped integer
);
ALTER TABLE office.staffs DROP COLUMN dropped;
ALTER TABLE office.staffs ADD CONSTRAINT boss FOREIGN KEY (boss_id) REFERENCES office.staffs (id);
COMMENT ON CONSTRAINT boss ON office.staffs IS '上司';
COMMENT ON COLUMN office.staffs.email IS 'メール';
COMMENT ON TABLE office.staffs IS $$職員 $x$ \. $$;
CREATE INDEX staffs_lower ON office.staffs (lower(email)) WHERE role <> 'manager';
CREATE STATISTICS office.staffs_stats ON role, load FROM office.staffs;
ALTER TABLE office.staffs ALTER COLUMN email SET STATISTICS 500;
ALTER TABLE office.staffs ALTER COLUMN preferences SET STORAGE EXTERNAL;

CREATE TABLE office.teams (id serial PRIMARY KEY, lead_id bigint NOT NULL REFERENCES office.staffs DEFERRABLE INITIALLY DEFERRED, name text);
ALTER TABLE office.staffs ADD COLUMN team_id integer CONSTRAINT team REFERENCES office.teams ON DELETE SET NULL;

CREATE TABLE office.bookings (room integer, during int4range, EXCLUDE USING gist (during WITH &&));
CREATE TABLE "we""ird $$ schema"."new
line \! table" ("col
umn" text, "From" int, PRIMARY KEY ("From"));
CREATE TABLE office.no_columns ();
CREATE UNLOGGED TABLE office.unlogged (id int);
CREATE TABLE office.no_key (v double precision, j json);

CREATE TABLE office.events (region text NOT NULL, id integer NOT NULL, at date, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE office.events_east PARTITION OF office.events FOR VALUES IN ('east');
CREATE TABLE office.events_west PARTITION OF office.events FOR VALUES IN ('west') PARTITION BY RANGE (id);
CREATE TABLE office.events_west_1 PARTITION OF office.events_west FOR VALUES FROM (0) TO (1000);
CREATE TABLE office.events_rest (at date, id integer NOT NULL, region text NOT NULL);
ALTER TABLE office.events ATTACH PARTITION office.events_rest DEFAULT;
CREATE TABLE office.event_notes (region text, id integer, note text, CONSTRAINT noted FOREIGN KEY (region, id) REFERENCES office.events);
CREATE INDEX events_at ON office.events (at);

CREATE TABLE office.parent (a int CHECK (a > 0));
CREATE TABLE office.child (b int) INHERITS (office.parent);

CREATE VIEW office.managers AS SELECT id, email, E'back\\slash' AS mark FROM office.staffs WHERE role = 'manager';
CREATE VIEW office.manager_names AS SELECT email FROM office.managers;
CREATE MATERIALIZED VIEW office.per_role AS SELECT role, count(*) AS staffs FROM office.staffs GROUP BY role;
CREATE UNIQUE INDEX per_role_key ON office.per_role (role);
CREATE MATERIALIZED VIEW office.a_stacked AS SELECT sum(staffs) AS total FROM office.per_role;
CREATE MATERIALIZED VIEW office.empty_view AS SELECT 1 AS one WITH NO DATA;

CREATE TABLE office.audit (id bigserial, what text);
CREATE FUNCTION office.log_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO office.audit (what) VALUES (TG_OP); RETURN COALESCE(NEW, OLD); END $$;
CREATE TRIGGER audit_staffs AFTER INSERT OR UPDATE ON office.staffs FOR EACH ROW EXECUTE FUNCTION office.log_change();
CREATE TRIGGER audit_truncate AFTER TRUNCATE ON office.staffs FOR EACH STATEMENT EXECUTE FUNCTION office.log_change();
CREATE TRIGGER audit_always BEFORE INSERT ON office.teams FOR EACH ROW EXECUTE FUNCTION office.log_change();
ALTER TABLE office.teams ENABLE ALWAYS TRIGGER audit_always;
CREATE TRIGGER audit_off AFTER DELETE ON office.teams FOR EACH ROW EXECUTE FUNCTION office.log_change();
ALTER TABLE office.teams DISABLE TRIGGER audit_off;
CREATE TRIGGER audit_events AFTER INSERT ON office.events FOR EACH ROW EXECUTE FUNCTION office.log_change();
CREATE RULE no_delete AS ON DELETE TO office.no_key DO INSTEAD NOTHING;
CREATE RULE two AS ON INSERT TO office.no_key WHERE new.v > 1e9 DO ALSO (INSERT INTO office.audit (what) VALUES ('a'); INSERT INTO office.audit (what) VALUES ('b;c'));

ALTER TABLE office.staffs ENABLE ROW LEVEL SECURITY;
CREATE POLICY readers ON office.staffs FOR SELECT TO keikaku_reader USING (role <> 'manager');

GRANT USAGE ON SCHEMA office TO keikaku_reader, "Keikaku Writer";
GRANT SELECT ON ALL TABLES IN SCHEMA office TO keikaku_reader;
GRANT INSERT, UPDATE (email) ON office.staffs TO "Keikaku Writer" WITH GRANT OPTION;
REVOKE ALL ON FUNCTION office.plus_one(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION office.plus_one(integer) TO keikaku_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA office GRANT SELECT ON TABLES TO keikaku_reader;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

CREATE PUBLICATION keikaku_pub FOR TABLE office.staffs, office.no_key;
CREATE COLLATION office.plain FROM "C";
CREATE AGGREGATE office.total(integer) (SFUNC = int4pl, STYPE = integer, INITCOND = '0');
CREATE OPERATOR office.=== (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq);
CREATE TEXT SEARCH CONFIGURATION office.words (COPY = simple);
"""

RICH_ROWS = r"""
INSERT INTO office.staffs (email, role, load, home, tags, preferences, raw, made_at, note)
  SELECT 'Staff' || i || '@example.com', (enum_range(NULL::office.role))[1 + i % 4], i % 100,
         ROW('100-000' || i, E'line\nfeed\ttab', 'manager')::office.address, ARRAY['a,b', NULL, '"q"'],
         jsonb_build_object('日本', i, 'path', 'c:\temp\.'), decode(lpad(to_hex(i), 4, '0'), 'hex'),
         timestamptz '2024-02-29 12:00:00.123456+09' + i * interval '1 day',
         CASE i % 4 WHEN 0 THEN '\.' WHEN 1 THEN '\N' WHEN 2 THEN E'\\.\n\\.\nCOPY x FROM stdin;\n-- PostgreSQL database dump complete' END
  FROM generate_series(1, 200) AS i;
UPDATE office.staffs SET boss_id = (id % 7) + 1;
INSERT INTO office.teams (lead_id, name) SELECT id, 'チーム' || id FROM office.staffs WHERE id <= 10;
UPDATE office.staffs SET team_id = 1 + id % 10;
INSERT INTO office.bookings SELECT i, int4range(i * 10, i * 10 + 5) FROM generate_series(1, 20) AS i;
INSERT INTO "we""ird $$ schema"."new
line \! table" VALUES (E'x\\\ny', 1), (NULL, 2), ('', 3);
INSERT INTO office.no_columns DEFAULT VALUES;
INSERT INTO office.no_columns DEFAULT VALUES;
INSERT INTO office.unlogged VALUES (1), (2);
INSERT INTO office.no_key VALUES ('NaN', '{"a":  1}'), ('-0', NULL), ('NaN', '{"a":  1}'), ('Infinity', '[]');
INSERT INTO office.events SELECT r, i, date '2024-01-01' + i FROM unnest(ARRAY['east', 'west', 'north']) AS r, generate_series(1, 50) AS i;
INSERT INTO office.event_notes SELECT region, id, 'note' FROM office.events;
INSERT INTO office.parent VALUES (1), (2);
INSERT INTO office.child VALUES (3, 4);
SELECT nextval('office.free_numbers'), nextval('office.free_numbers');
REFRESH MATERIALIZED VIEW office.per_role;
REFRESH MATERIALIZED VIEW office.a_stacked;
"""

LARGE_OBJECTS = r"""
SELECT lo_from_bytea(70001, 'first; BEGIN; COMMIT;'::bytea);
SELECT lo_from_bytea(70002, convert_to(repeat('大きい', 20000), 'UTF8'));
COMMENT ON LARGE OBJECT 70001 IS 'a large object';
GRANT SELECT ON LARGE OBJECT 70001 TO keikaku_reader;
"""

#: A superuser makes these before the owner comes, so that the owner could not make them again.
EXTENSION = {15: "pgcrypto", 16: "vector", 18: "vector"}
EXTENSION_USERS = {
    "pgcrypto": "CREATE TABLE office.hashed (h bytea DEFAULT public.digest('x', 'md5')); INSERT INTO office.hashed DEFAULT VALUES;",
    "vector": "CREATE TABLE office.embeddings (v public.vector(3)); INSERT INTO office.embeddings VALUES ('[1,2,3]');",
}

#: What is done to the database between snapshot and restore.
DAMAGE = """
DELETE FROM office.event_notes; DELETE FROM office.events WHERE region = 'north';
UPDATE office.staffs SET email = email || '.jp', note = NULL; INSERT INTO office.no_key VALUES (2);
SELECT nextval('office.free_numbers'), nextval('office.staffs_id_seq');
SELECT lo_unlink(70001), lo_from_bytea(70009, 'new'); SELECT lo_put(70002, 0, 'changed');
REFRESH MATERIALIZED VIEW office.per_role; REFRESH MATERIALIZED VIEW office.empty_view;
"""
#: Changes of the schema, which only the full form and a swap take back.
SCHEMA_DAMAGE = """
CREATE TABLE office.newer (id int REFERENCES office.teams, e office.role); CREATE SCHEMA extra; CREATE TABLE extra.t (a int);
CREATE TABLE public.loose (id serial, r office.role); CREATE VIEW public.on_loose AS SELECT * FROM public.loose;
CREATE FUNCTION public.f(office.role) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE public.p() LANGUAGE sql AS 'SELECT 1'; CREATE TYPE public.pair AS (a int, b office.address);
CREATE DOMAIN public.small AS int CHECK (VALUE < 10); CREATE SEQUENCE public.s; CREATE COLLATION public.c FROM "C";
CREATE AGGREGATE public.every_one(integer) (SFUNC = int4pl, STYPE = integer);
CREATE OPERATOR public.<-> (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4pl);
CREATE TEXT SEARCH DICTIONARY public.d (TEMPLATE = simple);
CREATE MATERIALIZED VIEW public.mv AS SELECT 1 AS a; CREATE PUBLICATION extra_pub FOR TABLE public.loose;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO keikaku_reader;
GRANT CREATE ON SCHEMA public TO keikaku_reader; COMMENT ON SCHEMA office IS 'other';
DROP TABLE office.no_key CASCADE; ALTER TABLE office.staffs DROP COLUMN note, ADD COLUMN extra public.small;
DROP MATERIALIZED VIEW office.per_role CASCADE; ALTER TYPE office.role ADD VALUE 'new'; DROP PUBLICATION keikaku_pub;
"""
#: Changes of rights alone.
RIGHTS_DAMAGE = """
REVOKE SELECT ON office.teams FROM keikaku_reader; GRANT DELETE ON office.audit TO "Keikaku Writer";
ALTER DEFAULT PRIVILEGES IN SCHEMA office GRANT INSERT ON TABLES TO keikaku_reader;
"""


def make_rich(server: Server, url: DatabaseURL) -> None:
    """Fill a database with the rich schema as the role of the URL, roles and foreign extension included."""
    with server.admin(url.database) as admin:
        for role in (READER, WRITER):
            with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        extension = EXTENSION[server.major]
        admin.execute(sql.SQL("CREATE EXTENSION {} SCHEMA public").format(sql.Identifier(extension)))
    run(url, RICH_SCHEMA + RICH_ROWS + LARGE_OBJECTS + EXTENSION_USERS[extension])


def run(url: DatabaseURL, statements: str) -> None:
    """Run statements with nothing of the package in between, each committed."""
    with connect(url) as connection:
        connection.execute(statements)


def rows_of(url: DatabaseURL, query: str) -> list[tuple[object, ...]]:
    """Ask a database with nothing of the package in between."""
    with connect(url) as connection:
        return connection.execute(query).fetchall()


_KEY = re.compile(r"^\\(un)?restrict .*$", re.MULTILINE)


def dump_text(server: Server, url: DatabaseURL, *options: str) -> str:
    """The whole database as text, by a pg_dump of our own as superuser; the random key is cut out."""
    result = subprocess.run(
        [server.bin / "pg_dump", *options],
        env={
            "PGHOST": server.url.host,
            "PGPORT": str(server.url.port),
            "PGUSER": server.url.user,
            "PGPASSWORD": server.url.password or "",
            "PGDATABASE": url.database,
            "LC_ALL": "C",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return _KEY.sub("", result.stdout)
