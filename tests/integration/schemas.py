"""The rich schema: one of everything that a restore must bring back exactly.

It is written as the plain owner of a database, so that the same text serves a
superuser and an owner. `READER` and `WRITER` are roles that only hold grants.
"""

from __future__ import annotations

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
CREATE CAST (office.role AS integer) WITH FUNCTION pg_catalog.enum_smaller(anyenum, anyenum) AS ASSIGNMENT;
"""

RICH_SCHEMA = RICH_SCHEMA.replace(
    "CREATE CAST (office.role AS integer) WITH FUNCTION pg_catalog.enum_smaller(anyenum, anyenum) AS ASSIGNMENT;\n", ""
)

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
