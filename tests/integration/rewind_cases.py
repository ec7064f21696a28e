"""Schemas and changes that are hard to take back, one for each edge that a rewind has met."""

# ruff: noqa: E501 - SQL reads better in long lines

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """What is there at the checkpoint, and what is committed after it."""

    #: Schema and rows at the checkpoint.
    before: str
    #: Scripts, each run in a session of its own.
    changes: tuple[str, ...]
    #: False where a plain owner cannot do what the case needs.
    as_owner: bool = True


PARENTS = """
CREATE TABLE p (id int PRIMARY KEY, v text UNIQUE);
CREATE TABLE c (id serial PRIMARY KEY, p_id int REFERENCES p {action}, v text);
CREATE TABLE g (id int PRIMARY KEY, c_id int REFERENCES c ON DELETE CASCADE);
INSERT INTO p SELECT i, 'p' || i FROM generate_series(1, 9) i;
INSERT INTO c (p_id, v) SELECT 1 + i % 9, 'c' || i FROM generate_series(1, 27) i;
INSERT INTO g SELECT i, i FROM generate_series(1, 27) i;
"""
TOUCH = """
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.changed := clock_timestamp(); RETURN NEW; END $$;
CREATE TABLE t (id int PRIMARY KEY, v text, changed timestamptz DEFAULT now());
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch();
INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i;
"""

CASES = {
    "insert update delete": Case(
        PARENTS.format(action=""),
        (
            "INSERT INTO p VALUES (10, 'new'); UPDATE c SET v = 'x', p_id = 10 WHERE id = 1",
            "UPDATE p SET v = 'changed' WHERE id = 2; DELETE FROM g WHERE id > 20",
            "DELETE FROM g; DELETE FROM c WHERE p_id = 3; DELETE FROM p WHERE id = 3",
        ),
    ),
    "upsert": Case(
        PARENTS.format(action=""),
        (
            "INSERT INTO p VALUES (1, 'one'), (20, 'twenty') ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v",
            "INSERT INTO p VALUES (1, 'again'), (20, 'more') ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v",
        ),
    ),
    "deleted and inserted again": Case(
        PARENTS.format(action="ON DELETE SET NULL"),
        (
            "DELETE FROM p WHERE id < 4; INSERT INTO p VALUES (2, 'other'), (3, 'p3')",
            "DELETE FROM p WHERE id = 2; INSERT INTO p VALUES (2, 'third'); UPDATE p SET v = 'fourth' WHERE id = 2",
        ),
    ),
    "truncate restart identity": Case(
        PARENTS.format(action=""),
        (
            "TRUNCATE p, c, g RESTART IDENTITY; INSERT INTO p VALUES (1, 'x'); INSERT INTO c (p_id) VALUES (1)",
        ),
    ),
    "truncate after other changes": Case(
        PARENTS.format(action=""),
        (
            "UPDATE g SET c_id = 5 WHERE id < 3; DELETE FROM g WHERE id = 4; TRUNCATE g; INSERT INTO g VALUES (1, 2), (4, 4)",
            "UPDATE g SET c_id = NULL; TRUNCATE g; INSERT INTO g VALUES (1, 1); UPDATE g SET c_id = 9",
        ),
    ),
    "truncate over a cycle": Case(
        "CREATE TABLE a (id int PRIMARY KEY, b_id int); CREATE TABLE b (id int PRIMARY KEY, a_id int REFERENCES a);"
        "INSERT INTO a SELECT i, i FROM generate_series(1, 5) i; INSERT INTO b SELECT i, i FROM generate_series(1, 5) i;"
        "ALTER TABLE a ADD FOREIGN KEY (b_id) REFERENCES b",
        ("TRUNCATE a CASCADE", "INSERT INTO a VALUES (1, NULL); INSERT INTO b VALUES (7, 1)"),
    ),
    "cascade": Case(PARENTS.format(action="ON DELETE CASCADE"), ("DELETE FROM p WHERE id IN (2, 5)",)),
    "new parent of an old child with a cascade": Case(
        PARENTS.format(action="ON DELETE CASCADE"),
        (
            "INSERT INTO p VALUES (50, 'new'); UPDATE c SET p_id = 50 WHERE id < 9",
            "DELETE FROM p WHERE id = 4",
        ),
    ),
    "set null and restrict": Case(
        PARENTS.format(action="ON DELETE SET NULL")
        + "CREATE TABLE r (id int PRIMARY KEY, p_id int REFERENCES p ON DELETE RESTRICT); INSERT INTO r VALUES (1, 1)",
        (
            "INSERT INTO p VALUES (30, 'n'); UPDATE r SET p_id = 30; UPDATE c SET p_id = 30 WHERE id = 5",
            "DELETE FROM p WHERE id IN (1, 2)",
        ),
    ),
    "update cascades along keys": Case(
        PARENTS.format(action="ON UPDATE CASCADE ON DELETE CASCADE"),
        (
            "UPDATE p SET id = id + 100",
            "UPDATE p SET id = id + 1 WHERE id = 109",
            "DELETE FROM p WHERE id = 103",
        ),
    ),
    "two cascades change one key": Case(
        "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p SELECT generate_series(1, 4);"
        "CREATE TABLE c (a int REFERENCES p ON UPDATE CASCADE, b int REFERENCES p ON UPDATE CASCADE, v int,"
        " PRIMARY KEY (a, b)); INSERT INTO c SELECT i, j, i * j FROM generate_series(1, 4) i, generate_series(1, 4) j",
        ("UPDATE p SET id = id + 10", "UPDATE p SET id = id - 9 WHERE id = 11"),
    ),
    "keys in a chain": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i",
        (
            "UPDATE t SET id = id * 10; UPDATE t SET id = 9 WHERE id = 80; UPDATE t SET id = 80 WHERE id = 90",
            "UPDATE t SET id = id + 100 WHERE id < 50; UPDATE t SET id = 1 WHERE id = 109",
        ),
    ),
    "unique values swapped": Case(
        PARENTS.format(action="ON DELETE CASCADE"),
        (
            (
                "UPDATE p SET v = 'aside' WHERE id = 1; UPDATE p SET v = 'p1' WHERE id = 2;"
                "UPDATE p SET v = 'p2' WHERE id = 1"
            ),
        ),
    ),
    "unique values in a ring of many": Case(
        PARENTS.format(action="ON DELETE SET NULL"),
        ("UPDATE p SET v = 't' || id; UPDATE p SET v = 'p' || (1 + id % 9)",),
    ),
    "unique value taken by a new row": Case(
        PARENTS.format(action=""),
        (
            "UPDATE p SET v = 'moved' WHERE id = 1; INSERT INTO p VALUES (60, 'p1')",
            "DELETE FROM g; DELETE FROM c WHERE p_id = 2; DELETE FROM p WHERE id = 2; INSERT INTO p VALUES (61, 'p2')",
        ),
    ),
    "self reference": Case(
        "CREATE TABLE t (id int PRIMARY KEY, up int REFERENCES t ON DELETE CASCADE, v text);"
        "INSERT INTO t SELECT i, nullif(i / 2, 0), 'v' FROM generate_series(1, 15) i",
        (
            "INSERT INTO t VALUES (20, 3), (21, 20), (22, 21); UPDATE t SET up = 22 WHERE id = 4",
            "DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, 22)",
        ),
    ),
    "self reference with restrict": Case(
        "CREATE TABLE t (id int PRIMARY KEY, up int REFERENCES t ON DELETE RESTRICT);"
        "INSERT INTO t SELECT i, nullif(i / 2, 0) FROM generate_series(1, 15) i",
        ("INSERT INTO t VALUES (20, 3), (21, 20); UPDATE t SET up = 21 WHERE id = 4",),
    ),
    "keys that change beside other columns": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i",
        (
            "UPDATE t SET v = 'a' WHERE id < 3; UPDATE t SET id = id + 10 WHERE id < 4; UPDATE t SET v = 'b' WHERE id > 4",
            "DO $$ BEGIN UPDATE t SET id = 50 WHERE id = 5; RAISE 'back'; EXCEPTION WHEN raise_exception THEN UPDATE t SET v = 'c' WHERE id = 5; END $$",
            "INSERT INTO t VALUES (6, 'x') ON CONFLICT (id) DO UPDATE SET id = 60",
            "MERGE INTO t USING (VALUES (7)) s (id) ON t.id = s.id WHEN MATCHED THEN UPDATE SET id = 70",
            "WITH other AS (UPDATE t SET v = 'd' WHERE id = 8 RETURNING id) UPDATE t SET id = 90 WHERE id = 9",
        ),
    ),
    "self reference that cascades its own key": Case(
        "CREATE TABLE t (id int PRIMARY KEY, up int REFERENCES t ON UPDATE CASCADE);"
        "INSERT INTO t VALUES (1, 1), (2, 1), (3, 3)",
        ("UPDATE t SET id = 10 WHERE id = 1", "UPDATE t SET id = id + 100"),
    ),
    "cycle of references": Case(
        "CREATE TABLE a (id int PRIMARY KEY, b_id int); CREATE TABLE b (id int PRIMARY KEY, a_id int NOT NULL"
        " REFERENCES a ON DELETE CASCADE); INSERT INTO a SELECT i, i FROM generate_series(1, 5) i;"
        "INSERT INTO b SELECT i, i FROM generate_series(1, 5) i;"
        "ALTER TABLE a ADD FOREIGN KEY (b_id) REFERENCES b ON DELETE CASCADE",
        (
            "DELETE FROM a WHERE id = 2",
            "INSERT INTO a VALUES (9, NULL); INSERT INTO b VALUES (9, 9); UPDATE a SET b_id = 9; ",
            "UPDATE b SET a_id = 9",
        ),
    ),
    "deferred constraints": Case(
        "CREATE TABLE a (id int PRIMARY KEY, b_id int); CREATE TABLE b (id int PRIMARY KEY, a_id int"
        " REFERENCES a DEFERRABLE INITIALLY DEFERRED, UNIQUE (a_id) DEFERRABLE);"
        "INSERT INTO a VALUES (1, 1), (2, 2); INSERT INTO b VALUES (1, 1), (2, 2);"
        "ALTER TABLE a ADD FOREIGN KEY (b_id) REFERENCES b DEFERRABLE",
        (
            (
                "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO a VALUES (7, 7); INSERT INTO b VALUES (7, 7);"
                "UPDATE b SET a_id = 3 - a_id WHERE id < 3; COMMIT"
            ),
            (
                "BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM a WHERE id = 1; DELETE FROM b WHERE id IN (1, 2);"
                "INSERT INTO b VALUES (2, 2), (1, 7); UPDATE b SET a_id = NULL WHERE id = 7; COMMIT"
            ),
        ),
    ),
    "a key that may be double for a moment": Case(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);"
        "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 5) i",
        (
            "BEGIN; INSERT INTO t VALUES (3, 'double'); DELETE FROM t WHERE v = 'v3'; COMMIT",
            "UPDATE t SET id = id + 1",
        ),
    ),
    "updated_at trigger": Case(
        TOUCH, ("UPDATE t SET v = 'x' WHERE id < 4; INSERT INTO t VALUES (10); DELETE FROM t WHERE id = 8",)
    ),
    "audit trigger": Case(
        PARENTS.format(action="ON DELETE CASCADE")
        + "CREATE TABLE log (at timestamptz DEFAULT clock_timestamp(), old text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log (old) VALUES (OLD::text); RETURN NULL; END $$;"
        "CREATE TRIGGER note AFTER UPDATE OR DELETE ON c FOR EACH ROW EXECUTE FUNCTION note()",
        ("UPDATE c SET v = 'x' WHERE id < 5", "DELETE FROM p WHERE id = 7"),
    ),
    "a trigger that changes its own row again": Case(
        "CREATE TABLE t (id int PRIMARY KEY, n int, total int);"
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE t SET total = n * 2 WHERE id = NEW.id AND total IS DISTINCT FROM n * 2; RETURN NULL; END $$;"
        "CREATE TRIGGER again AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION again();"
        "INSERT INTO t SELECT i, i FROM generate_series(1, 9) i",
        ("UPDATE t SET n = n + 1", "INSERT INTO t VALUES (20, 1); UPDATE t SET n = 7 WHERE id IN (3, 20)"),
    ),
    "a trigger that always fires": Case(
        TOUCH + "ALTER TABLE t ENABLE ALWAYS TRIGGER touch",
        (
            "UPDATE t SET v = 'x' WHERE id < 4",
            "SET session_replication_role = replica; DELETE FROM t WHERE id = 5",
        ),
        as_owner=False,
    ),
    "a trigger that forbids": Case(
        PARENTS.format(action="") + "CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'never delete'; END $$;"
        "CREATE TRIGGER forbid BEFORE DELETE ON p FOR EACH ROW EXECUTE FUNCTION forbid()",
        ("INSERT INTO p VALUES (70, 'x')",),
    ),
    "deferred constraint trigger": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 5) i;"
        "CREATE FUNCTION grow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN UPDATE t SET v = v + 1 WHERE id = 1 AND NEW.id <> 1; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER grow AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION grow()",
        ("BEGIN; INSERT INTO t VALUES (6, 6); UPDATE t SET v = 0 WHERE id = 2; COMMIT",),
    ),
    "rules": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE log (v text);"
        "CREATE RULE note AS ON UPDATE TO t DO ALSO INSERT INTO log VALUES (OLD.v);"
        "CREATE RULE keep AS ON DELETE TO t WHERE OLD.id = 1 DO INSTEAD NOTHING;"
        "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 5) i; CREATE RULE no AS ON INSERT TO t"
        " WHERE NEW.id > 100 DO INSTEAD INSERT INTO log VALUES (NEW.v)",
        ("UPDATE t SET v = 'x'; DELETE FROM t; INSERT INTO t VALUES (101, 'y'), (7, 'z')",),
    ),
    "partitions": Case(
        "CREATE TABLE t (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t2 (v text, gone int, k int NOT NULL, id int NOT NULL); ALTER TABLE t2 DROP COLUMN gone;"
        "ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (40) PARTITION BY LIST (k);"
        "CREATE TABLE t3d PARTITION OF t3 DEFAULT;"
        "INSERT INTO t SELECT i, i, 'v' || i FROM generate_series(0, 30) i",
        (
            "UPDATE t SET k = k + 10 WHERE id < 5; INSERT INTO t1 VALUES (50, 1, 'leaf'); DELETE FROM t2 WHERE id = 15",
            "UPDATE t2 SET v = 'direct' WHERE id < 13; TRUNCATE t3; INSERT INTO t3 VALUES (60, 21, 'sub')",
            "TRUNCATE t1; UPDATE t SET k = k - 10 WHERE k > 12",
        ),
    ),
    "partitions without a key": Case(
        "CREATE TABLE t (k int, j json) PARTITION BY LIST (k); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);"
        "CREATE TABLE td PARTITION OF t DEFAULT; INSERT INTO t SELECT i % 3, '{}' FROM generate_series(1, 12) i",
        ("UPDATE t SET k = 1 WHERE k = 0; DELETE FROM td; INSERT INTO t VALUES (1, '{}'), (2, '{ }')",),
    ),
    "partitions with references and triggers": Case(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (50); CREATE TABLE p2 PARTITION OF p DEFAULT;"
        "CREATE TABLE c (id int, p_id int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE, PRIMARY KEY (id))"
        " PARTITION BY HASH (id); CREATE TABLE c0 PARTITION OF c FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE c1 PARTITION OF c FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.v := NEW.v || '!'; RETURN NEW; END $$;"
        "CREATE TRIGGER shout BEFORE UPDATE ON p FOR EACH ROW EXECUTE FUNCTION shout();"
        "ALTER TABLE p2 DISABLE TRIGGER shout;"
        "INSERT INTO p SELECT i, 'p' || i FROM generate_series(1, 90, 10) i;"
        "INSERT INTO c SELECT i, 1 + 10 * (i % 9) FROM generate_series(1, 27) i",
        (
            "UPDATE p SET v = 'x'; DELETE FROM p WHERE id = 21; INSERT INTO p VALUES (7, 'new')",
            "UPDATE c SET p_id = 7 WHERE id < 6; UPDATE p SET id = id + 48 WHERE id IN (1, 11)",
        ),
    ),
    "inheritance": Case(
        "CREATE TABLE p (id int PRIMARY KEY, v text); CREATE TABLE c (more text, PRIMARY KEY (id)) INHERITS (p);"
        "INSERT INTO p SELECT i, 'p' FROM generate_series(1, 5) i;"
        "INSERT INTO c SELECT i, 'c', 'more' || i FROM generate_series(11, 15) i",
        (
            "UPDATE p SET v = 'x'",
            "DELETE FROM p WHERE id IN (2, 12); UPDATE c SET more = 'y'; INSERT INTO c VALUES (1)",
            "TRUNCATE p; INSERT INTO p VALUES (3, 'again')",
        ),
    ),
    "no key": Case(
        "CREATE TABLE t (a int, f float8, n numeric, j json, old text);"
        "INSERT INTO t SELECT i % 3, '-0', 1.0, '{\"a\":1,\"a\":2}', NULL FROM generate_series(1, 9) i;"
        "INSERT INTO t VALUES (1, 'NaN', 1.00, 'null', ''), (1, 0, 'NaN', NULL, NULL)",
        (
            "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 2); INSERT INTO t VALUES (1, '-0', 1.00)",
            "UPDATE t SET f = 0 WHERE f = 0; INSERT INTO t SELECT * FROM t",
        ),
    ),
    "identity and generated columns": Case(
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2)"
        " STORED); INSERT INTO t (a) SELECT generate_series(1, 5);"
        "CREATE TABLE u (a int PRIMARY KEY, n int GENERATED BY DEFAULT AS IDENTITY); INSERT INTO u VALUES (1), (2)",
        (
            "DELETE FROM t WHERE id = 2; INSERT INTO t (a) VALUES (50); UPDATE t SET a = a + 1",
            "UPDATE u SET n = 77; INSERT INTO u VALUES (3)",
        ),
    ),
    "identity outside the key": Case(
        "CREATE TABLE t (k text PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY UNIQUE, v int);"
        "INSERT INTO t (k, v) VALUES ('a', 1), ('b', 2);"
        "CREATE TABLE c (id int PRIMARY KEY, k text REFERENCES t ON DELETE CASCADE); INSERT INTO c VALUES (1, 'a'), (2, 'b')",
        (
            "DELETE FROM t WHERE k = 'a'; INSERT INTO t (k, v) VALUES ('a', 1)",
            "DELETE FROM t; INSERT INTO t (k, v) VALUES ('b', 5); INSERT INTO c VALUES (7, 'b')",
        ),
    ),
    "only an identity outside the key": Case(
        "CREATE TABLE t (k text PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v int);"
        "INSERT INTO t (k, v) VALUES ('a', 1), ('b', 2)",
        ("UPDATE t SET n = DEFAULT, v = 9 WHERE k = 'b'",),
    ),
    "sequences": Case(
        "CREATE SEQUENCE s START 5; CREATE SEQUENCE called; CREATE SEQUENCE back INCREMENT -2; SELECT nextval('called');"
        "CREATE SEQUENCE odd; SELECT setval('odd', 42, false)",
        (
            "SELECT nextval('s'), nextval('s'), nextval('called'), nextval('back')",
            "ALTER SEQUENCE called RESTART; SELECT setval('odd', 41, false)",
        ),
    ),
    "types of the user": Case(
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b text);"
        "CREATE DOMAIN short AS varchar(5) CHECK (VALUE <> 'bad');"
        "CREATE TABLE t (id mood, d short, m mood[], p pair, ps pair[], r int4range, b bytea, i interval,"
        " x jsonb, c char(7), v varchar(9), bits bit(3), PRIMARY KEY (id, d));"
        "INSERT INTO t VALUES ('sad', 'a', '{sad,happy}', '(1,\"a, b\")', ARRAY[(1, 'x')::pair], '[1,5)', '\\x00ff',"
        " '1 mon 1 day', '[1, null]', 'ab', 'cd ', '101'), ('happy', 'b', NULL, NULL, '{}', 'empty', '', '30 days', NULL, NULL, NULL, NULL)",
        (
            "UPDATE t SET m = '{happy}', p = (2, NULL); DELETE FROM t WHERE id = 'happy'",
            "INSERT INTO t (id, d) VALUES ('happy', 'b'), ('happy', 'c'); UPDATE t SET id = 'happy', d = 'z' WHERE d = 'a'",
        ),
    ),
    "large values": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat(md5(i::text), 20000)"
        " FROM generate_series(1, 3) i",
        (
            "UPDATE t SET id = id + 10 WHERE id = 1; UPDATE t SET v = 'short' WHERE id = 2; DELETE FROM t WHERE id = 3",
        ),
    ),
    "names that need quotes": Case(
        'CREATE SCHEMA "We ird"; CREATE TABLE "We ird"."t""a$b$" ("Id; --" int PRIMARY KEY, "sel\'ect" text, "op" int,'
        ' "seq" int, "new_rows" text, c1 text); INSERT INTO "We ird"."t""a$b$" VALUES (1, \'a\', 1, 1, \'x\', \'c\');'
        'CREATE SEQUENCE "We ird"."s%q"',
        (
            'UPDATE "We ird"."t""a$b$" SET "sel\'ect" = \'b\', "op" = 2, c1 = NULL; SELECT nextval(\'"We ird"."s%q"\')',
            'INSERT INTO "We ird"."t""a$b$" VALUES (2); TRUNCATE "We ird"."t""a$b$"',
        ),
    ),
    "exclusion constraint": Case(
        "CREATE TABLE t (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));"
        "INSERT INTO t VALUES (1, '[1,5)'), (2, '[5,9)')",
        (
            "UPDATE t SET r = '[20,30)' WHERE id = 1; UPDATE t SET r = '[1,5)' WHERE id = 2; INSERT INTO t VALUES (3, '[5,9)')",
        ),
    ),
    "a loader in replica mode": Case(
        PARENTS.format(action="ON DELETE CASCADE"),
        (
            "SET session_replication_role = replica; DELETE FROM p WHERE id = 1; INSERT INTO c VALUES (99, 1000)",
        ),
        as_owner=False,
    ),
    "savepoints": Case(
        PARENTS.format(action="ON DELETE CASCADE"),
        (
            (
                "BEGIN; UPDATE p SET v = 'a' WHERE id = 1; SAVEPOINT s; UPDATE p SET v = 'b'|| id; DELETE FROM p WHERE id = 2;"
                "ROLLBACK TO s; UPDATE p SET v = 'c' WHERE id = 3; COMMIT"
            ),
            "BEGIN; DELETE FROM p; ROLLBACK",
        ),
    ),
    "merge": Case(
        PARENTS.format(action="ON DELETE CASCADE"),
        (
            (
                "MERGE INTO p USING (VALUES (1, 'p1'), (2, 'p2'), (33, 'p9'), (9, 'none')) s(id, v) ON p.id = s.id"
                " WHEN MATCHED AND s.id = 9 THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v || '!'"
                " WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v || '?')"
            ),
            (
                "MERGE INTO p USING (VALUES ('p4', 0), ('x', 4)) s(v, id) ON p.v = s.v WHEN MATCHED THEN DELETE"
                " WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)"
            ),
        ),
    ),
    "one statement that deletes and inserts": Case(
        PARENTS.format(action="ON DELETE SET NULL"),
        (
            "WITH d AS (DELETE FROM p WHERE id = 5 RETURNING *) INSERT INTO p SELECT id, 'new' FROM d",
            "WITH d AS (DELETE FROM p WHERE id IN (6, 7) RETURNING *) INSERT INTO p SELECT id, 'first' FROM d LIMIT 1",
        ),
    ),
    "a function that writes inside a statement": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 5) i;"
        "CREATE FUNCTION take(i int) RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM t WHERE id = i; RETURN 'taken'; END $$",
        (
            "INSERT INTO t SELECT 3, take(3)",
            "INSERT INTO t SELECT 4, take(4); UPDATE t SET v = 'w' WHERE id = 4",
        ),
    ),
    "a table without columns": Case(
        "CREATE TABLE t (); INSERT INTO t DEFAULT VALUES; INSERT INTO t DEFAULT VALUES",
        ("INSERT INTO t DEFAULT VALUES", "DELETE FROM t; INSERT INTO t DEFAULT VALUES"),
    ),
    "keys that are equal but not the same": Case(
        "CREATE TABLE n (id numeric PRIMARY KEY, v int); INSERT INTO n VALUES (1.0, 1), (2, 2);"
        "CREATE TABLE c (id char(5) PRIMARY KEY, v int); INSERT INTO c VALUES ('a', 1), ('b  ', 2);"
        "CREATE TABLE f (id float8 PRIMARY KEY, v int); INSERT INTO f VALUES (0, 1), ('NaN', 2)",
        (
            "UPDATE n SET id = id * 1.00; UPDATE f SET id = '-0' WHERE id = 0",
            "DELETE FROM c; INSERT INTO c VALUES ('b', 3)",
        ),
    ),
    "views and copy": Case(
        TOUCH
        + "CREATE VIEW w AS SELECT id, v FROM t WHERE id < 100; CREATE TABLE u (id int UNIQUE NOT NULL);"
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t",
        (
            "UPDATE w SET v = 'x' WHERE id = 1; INSERT INTO w VALUES (30, 'y'); INSERT INTO u SELECT generate_series(1, 500)",
        ),
    ),
    "unlogged": Case(
        "CREATE UNLOGGED TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')",
        ("UPDATE t SET v = 'b'; INSERT INTO t VALUES (2)",),
    ),
    "check and not null": Case(
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL CHECK (v > 0)); INSERT INTO t VALUES (1, 1);"
        "CREATE FUNCTION ok(i int) RETURNS boolean LANGUAGE sql AS $$ SELECT count(*) >= 0 FROM t $$;"
        "ALTER TABLE t ADD CHECK (ok(v))",
        ("DELETE FROM t; INSERT INTO t VALUES (1, 5), (2, 6)",),
    ),
}
