"""Acceptance 26 to 30: what undo keeps, what it brings back, what it leaves to others, what it refuses."""

# ruff: noqa: E501 - SQL reads better in long lines

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    AccessDeniedError,
    PatchFailedError,
    PatchRefusedError,
    PatchRollbackError,
)
from keikaku_snapshots.patches import records, undo, undo_clean
from keikaku_snapshots.patches.definition import StepPatch, data_patch
from keikaku_snapshots.patches.rollback import roll_back
from tests.patch_lab import Lab
from tests.patch_samples import AddOne, Everything, Steps
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keikaku_snapshots.patches.context import PatchContext, StepContext
    from keikaku_snapshots.patches.definition import Step
    from keikaku_snapshots.patches.execution import Execution
    from tests.conftest import MakeDatabase
    from tests.servers import Server


def steps_of(tables: Sequence[str], *scripts: str) -> type[StepPatch]:
    """Make a patch whose steps are these scripts, each in a transaction of its own."""

    @data_patch("scripts")
    class Scripts(StepPatch):
        target_tables = tuple(tables)

        def steps(self, ctx: PatchContext) -> Sequence[Step]:
            def step(script: str) -> Step:
                def work(ctx: StepContext) -> None:
                    ctx.execute(script)

                return script[:20], work

            return [step(script) for script in scripts]

    return Scripts


def ran(lab: Lab, tables: Sequence[str], *scripts: str) -> Execution:
    """Run scripts as a patch."""
    return lab.executor(steps_of(tables, *scripts)).execute("scripts", dry_run=False, again=True)


def taken_back(lab: Lab, execution: Execution, **how: Any) -> Execution:
    """Roll a run back."""
    return lab.executor(steps_of(["public.t"], "")).rollback(execution.execution_id, **how)


SHOP = """
CREATE TABLE p (id int PRIMARY KEY, v text, n int);
CREATE TABLE c (id int PRIMARY KEY, p_id int REFERENCES p ON DELETE CASCADE, v text);
CREATE TABLE s (id int PRIMARY KEY, p_id int REFERENCES p ON DELETE SET NULL);
CREATE TABLE gen (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);
CREATE TABLE ident (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
CREATE TABLE parts (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
CREATE TABLE byv (id int PRIMARY KEY, v int);
CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree, v text);
INSERT INTO p SELECT i, 'p' || i, i FROM generate_series(1, 20) i;
INSERT INTO c SELECT i, 1 + i % 20, 'c' || i FROM generate_series(1, 60) i;
INSERT INTO s SELECT i, 1 + i % 20 FROM generate_series(1, 40) i;
INSERT INTO gen SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO ident (v) SELECT 'i' || i FROM generate_series(1, 20) i;
INSERT INTO parts SELECT i, 1 + i % 2, 'x' || i FROM generate_series(1, 20) i;
INSERT INTO byv SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO tree SELECT i, nullif(i / 2, 0), 'v' FROM generate_series(1, 31) i;
"""
SHOP_TABLES = tuple(f"public.{name}" for name in ("p", "c", "s", "gen", "ident", "parts", "byv", "tree"))
CHANGES = {
    "insert": ["INSERT INTO p VALUES (100, 'new', 1); INSERT INTO c VALUES (100, 100, 'of the new one')"],
    "update": ["UPDATE p SET v = v || '!', n = n + 1 WHERE id < 9"],
    "delete": ["DELETE FROM tree WHERE id > 15; DELETE FROM byv WHERE id % 2 = 0"],
    "upsert": [
        "INSERT INTO p VALUES (1, 'one', 1), (200, 'two', 2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v",
        "INSERT INTO p VALUES (1, 'uno', 1), (200, 'due', 2) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v",
    ],
    "many touches": [
        "UPDATE p SET n = n + 1; UPDATE p SET n = n + 1; INSERT INTO p VALUES (300, 'x', 0)",
        "UPDATE p SET n = n * 2 WHERE id > 5; DELETE FROM p WHERE id = 300; DELETE FROM p WHERE id = 7",
        "INSERT INTO p VALUES (7, 'again', 7), (300, 'y', 1); UPDATE p SET v = 'z' WHERE id = 7",
    ],
    "cascade": ["DELETE FROM p WHERE id IN (2, 3, 5)"],
    "set null": ["DELETE FROM p WHERE id = 4; UPDATE s SET p_id = 9 WHERE p_id IS NULL"],
    "children moved to a new parent": [
        "INSERT INTO p VALUES (400, 'new', 1); UPDATE c SET p_id = 400 WHERE id < 30; DELETE FROM p WHERE id = 20"
    ],
    "generated": [
        "UPDATE gen SET a = -a WHERE id < 5; INSERT INTO gen VALUES (50, 5); DELETE FROM gen WHERE id = 9"
    ],
    "identity": [
        "DELETE FROM ident WHERE id < 5; INSERT INTO ident (v) VALUES ('n1'), ('n2'); UPDATE ident SET v = v || '?'"
    ],
    "partition": [
        "DELETE FROM parts WHERE id = 3; INSERT INTO parts VALUES (90, 1, 'n'); UPDATE parts SET v = 'w'"
    ],
    "tree": [
        "INSERT INTO tree VALUES (40, 15, 'n'), (41, 40, 'n'), (39, 41, 'n'); UPDATE tree SET up = 39 WHERE id = 15"
    ],
    "copied through": [
        "WITH gone AS (DELETE FROM byv WHERE id < 4 RETURNING *) INSERT INTO p SELECT id + 500, 'b', v FROM gone"
    ],
}


@pytest.mark.parametrize("name", CHANGES)
def test_26_everything_is_byte_identical_after_a_rollback(newest: Lab, name: str) -> None:
    """Each way of changing rows, over all tables; the rollback goes in batches of any size."""
    newest.run(SHOP)
    before = newest.checksum(*SHOP_TABLES)
    done = ran(newest, SHOP_TABLES, *CHANGES[name])
    assert newest.checksum(*SHOP_TABLES) != before

    back = taken_back(newest, done)

    assert newest.checksum(*SHOP_TABLES) == before
    assert (back.rollback_performed, back.conflicts, back.sub_state) == (True, 0, "rolled_back")
    assert newest.leftovers() == []


def test_26_all_of_it_in_one_run_on_each_version(lab: Lab) -> None:
    """The same, in one transaction."""
    lab.run(SHOP)
    before = lab.checksum(*SHOP_TABLES)
    script = ";".join(script for scripts in CHANGES.values() for script in scripts)
    done = ran(lab, SHOP_TABLES, script)
    assert taken_back(lab, done).rollback_performed
    assert lab.checksum(*SHOP_TABLES) == before


@pytest.mark.parametrize("patch", [Everything, AddOne, Steps], ids=lambda patch: patch.name)
@pytest.mark.parametrize("mode", ["batched", "single_transaction"])
def test_26_every_kind_of_patch_in_every_mode_is_taken_back(newest: Lab, patch: Any, mode: str) -> None:
    """Set-based, row-wise and by own SQL; in batches, or all in one transaction."""
    newest.items(90)
    before = newest.checksum()
    executor = newest.executor(patch, mode=mode, batch_size=20, inconsistency_limit=1.1)
    done = executor.execute(patch.name, dry_run=False)
    assert newest.checksum() != before
    assert executor.rollback(done.execution_id).rollback_performed
    assert newest.checksum() == before
    assert newest.leftovers() == []


@pytest.mark.parametrize("shift", ["1 + id % 9", "1 + (id + 7) % 9", "10 - id"])
def test_26_unique_values_that_went_round_go_back(newest: Lab, shift: str) -> None:
    """No order of updates brings them back one by one; others refer to the rows and keep doing so."""
    newest.run(
        "CREATE TABLE public.u (id int PRIMARY KEY, v text UNIQUE, w int);"
        "CREATE TABLE public.r (id int PRIMARY KEY, u_id int NOT NULL REFERENCES u);"
        "INSERT INTO u SELECT i, 'v' || i, i FROM generate_series(1, 9) i; INSERT INTO r SELECT id, id FROM u"
    )
    before = newest.checksum("public.u", "public.r")
    done = ran(newest, ["public.u"], f"UPDATE u SET v = 't' || id, w = 0; UPDATE u SET v = 'v' || ({shift})")
    newest.run("UPDATE u SET w = 7 WHERE id = 3")
    with pytest.raises(PatchRollbackError):
        taken_back(newest, done)
    assert newest.rows("SELECT w FROM u WHERE id = 3") == [(7,)]
    newest.run("UPDATE u SET w = 3 WHERE id = 3")
    assert newest.checksum("public.u", "public.r") == before


def test_26_a_row_that_moves_to_another_partition(lab: Lab) -> None:
    """The key stays, the partition changes: also with children in the partitions."""
    lab.run(
        "CREATE TABLE public.m (id int, k int, v text) PARTITION BY RANGE (k);"
        "CREATE TABLE m_low PARTITION OF m FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE m_high PARTITION OF m FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE public.t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (10) TO (20);"
        "INSERT INTO t SELECT i, i FROM generate_series(1, 19) i"
    )
    before = lab.checksum("public.t", "public.t_1", "public.t_2")
    done = ran(
        lab,
        ["public.t"],
        "UPDATE t SET v = v + 1",
        "DELETE FROM t WHERE id % 5 = 0; INSERT INTO t_1 VALUES (0, 0)",
    )
    assert taken_back(lab, done).rollback_performed
    assert lab.checksum("public.t", "public.t_1", "public.t_2") == before
    with pytest.raises(PatchFailedError) as caught:
        ran(lab, ["public.t"], "UPDATE t SET id = 19 - id WHERE id IN (5, 11)")
    assert "key" in str(caught.value)
    with pytest.raises(PatchRefusedError, match="key"):
        ran(lab, ["public.m"], "UPDATE m SET v = 'no key'")


TYPES = """
CREATE SCHEMA "odd %s {x}"; CREATE TYPE "odd %s {x}".mood AS ENUM ('sad', 'so so');
CREATE DOMAIN "odd %s {x}".raw AS json; CREATE DOMAIN posint AS int CHECK (value > 0);
CREATE DOMAIN "odd %s {x}".real AS float8;
CREATE TYPE pair AS (a int, b text);
CREATE TABLE public.t (
  id int PRIMARY KEY, f4 real, f8 float8, num numeric, money2 numeric(12, 2), j json, jb jsonb, b bytea, ints int[],
  txts text[], grid int[][], r int4range, nr numrange, mr int4multirange, tr tstzrange, p posint, raw "odd %s {x}".raw,
  rl "odd %s {x}".real, mood "odd %s {x}".mood, moods "odd %s {x}".mood[], pr pair, ts timestamp, tz timestamptz,
  d date, tm time, ttz timetz, iv interval, u uuid, ch char(5), vc varchar(9), bits bit(4), vbits varbit, ip inet,
  nt cidr, mac macaddr, pt point, pl polygon, tsv tsvector, tsq tsquery, c money, o oid, "Odd %s ""q"" {y}" text,
  jp jsonpath, ci text COLLATE "C", lo pg_lsn);
INSERT INTO t VALUES
 (1, '-0', '-0', 'NaN', 1.10, '{"b": 1, "a":2, "a" : 3}', 'null', '\\x00ff', '{1,NULL,3}', '{"NULL",NULL,"a,b"}',
  '[2:3][0:1]={{1,2},{3,4}}', '[1,5)', '(,1.50]', '{[1,3),[7,9)}', '[-infinity,infinity]', 1, '{"z": 0, "z":1e2}',
  '-0', 'so so', '{sad,NULL}', '(1,"a,""b")', 'infinity', '-infinity', 'infinity', '24:00:00', '10:00:00.123456+09:30',
  '1 mon -1 days +00:00:00.000001', '00000000-0000-0000-0000-00000000000a', 'a ', 'b  ', '1010', '1', '::1/64',
  '10.0.0.0/8', '08:00:2b:01:02:03', '(1.5,-0)', '((0,0),(1,1),(1,0))', 'a:1A b:2', 'a & !b', '-12.34',
  4294967295, E'line\\nbreak\\t%s ; -- ', '$.a[*] ? (@ > 1)', 'ß', '16/B374D848'),
 (2, 'NaN', 'NaN', '1.00', 0, '  [ ]  ', '{"a": null}', '', '{}', '{}', '{}', 'empty', 'empty', '{}', 'empty', 2,
  'null', 'NaN', 'sad', '{}', '(,)', '4713-01-01 BC', '294276-12-31', '0044-03-15 BC', '00:00', '00:00+00',
  '-178000000 years', NULL, '', '', '0000', '', '1.2.3.4', '::/0', 'ff:ff:ff:ff:ff:ff', '(NaN,Infinity)', '((0,0))',
  '', '', '0', 0, '', '$', '', '0/0'),
 (3, 'infinity', '-infinity', '-infinity', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (4, '1e-45', '5e-324', '1e-1000', 99.99, '1.0', '1.0', decode(repeat('ab', 9000), 'hex'), ARRAY[[[1]]], '{""}',
  '{{1}}', '(,)', '[1.0,1.00]', '{(,)}', '(,)', 3, '1.0', '0.1', 'sad', '{"so so"}', '(1,)', '2000-02-29 12:00:00.000001',
  '2000-01-01 00:00:00+14', '2000-02-29', '12:00', '12:00-15', '00:00:00.000001', gen_random_uuid(), '漢字', '日本',
  '1111', repeat('1', 100)::varbit, '2001:db8::1', '10.1.2.3/32', '00:00:00:00:00:01', '(1e300,1)', '((0,0),(1,1))',
  'x', 'x', '1', 1, repeat('long ', 5000), '$.b', 'z', 'F/F')
"""


def test_27_all_column_types_round_trip_through_undo(lab: Lab) -> None:
    """Updated, deleted and inserted, with the session's styles set against it: bytes decide."""
    lab.run(TYPES.replace("%%", "%"))
    others = [
        name
        for (name,) in lab.rows(
            "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 1"
        )
    ]
    kept = lab.rows("SELECT t.*::text FROM t ORDER BY id")
    lab.run("CREATE TABLE before AS SELECT * FROM t")
    nulls = ", ".join('"' + name.replace('"', '""') + '" = NULL' for name in others).replace("%", "%%")
    strange = "SET LOCAL extra_float_digits = -15; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL bytea_output = 'escape';"
    for script in (
        f"{strange} UPDATE t SET {nulls}",
        f"{strange} UPDATE t SET f8 = 0, f4 = 0, rl = 0, num = 1.0, j = '1.00', raw = '1.00'",
        f"{strange} DELETE FROM t",
        f"{strange} DELETE FROM t; INSERT INTO t (id) VALUES (1), (9)",
    ):
        done = ran(lab, ["public.t"], script.replace("%%", "%"))
        assert taken_back(lab, done).rollback_performed
        assert lab.rows("SELECT t.*::text FROM t ORDER BY id") == kept
        assert lab.value("SELECT count(*) FROM t JOIN before b USING (id) WHERE t.* *<> b.*") == 0


CONCURRENT = "CREATE TABLE public.t (id int PRIMARY KEY, a int, b text); INSERT INTO t SELECT i, i, 'b' FROM generate_series(1, 9) i"


@pytest.fixture
def edited(lab: Lab) -> tuple[Lab, Execution]:
    """A run, and what an application did to its rows afterwards."""
    lab.run(CONCURRENT)
    done = ran(
        lab, ["public.t"],
        "UPDATE t SET a = a + 100 WHERE id < 6; DELETE FROM t WHERE id IN (8, 9); INSERT INTO t VALUES (20, 1), (21, 1)",
    )  # fmt: skip
    lab.run(
        "UPDATE t SET b = 'mine' WHERE id = 1; UPDATE t SET a = -1, b = 'both' WHERE id = 2; DELETE FROM t WHERE id = 3;"
        "UPDATE t SET a = 4 WHERE id = 4; INSERT INTO t VALUES (9, 0, 'new nine'); UPDATE t SET b = 'kept' WHERE id = 21"
    )
    return lab, done


def test_28_newer_values_of_others_are_kept_and_reported(edited: tuple[Lab, Execution]) -> None:
    """FAULTS 14: other columns are kept, the same column is a conflict whose newer value stays."""
    lab, done = edited
    with pytest.raises(PatchRollbackError) as caught:
        taken_back(lab, done)
    assert lab.rows("SELECT * FROM t ORDER BY id") == [
        (1, 1, "mine"), (2, -1, "both"), (4, 4, "b"), (5, 5, "b"), (6, 6, "b"), (7, 7, "b"), (8, 8, "b"),
        (9, 0, "new nine"), (21, 1, "kept"),
    ]  # fmt: skip
    assert caught.value.details["conflicts"] == 4
    found = lab.rows("SELECT key, columns, why FROM keikaku_patches.conflict ORDER BY key")
    assert [(key, columns) for key, columns, _ in found] == [
        (["2"], ["a"]), (["21"], []), (["3"], []), (["9"], []),
    ]  # fmt: skip
    state = lab.executor().status(done.execution_id)[0]
    assert (state.sub_state, state.rollback_performed) == ("rolled_back_with_conflicts", False)
    assert "mine" not in str(caught.value)


def test_28_abort_changes_nothing_when_there_is_a_conflict(edited: tuple[Lab, Execution]) -> None:
    """All or nothing, and the conflicts are named by their keys."""
    lab, done = edited
    before = lab.checksum("public.t")
    with pytest.raises(PatchRollbackError) as caught:
        taken_back(lab, done, on_conflict="abort")
    assert lab.checksum("public.t") == before
    assert "public.t 21" in str(caught.value)
    assert lab.value("SELECT count(*) FROM keikaku_patches.conflict") == 0


def test_28_abort_takes_everything_back_when_there_is_none(lab: Lab) -> None:
    """In one transaction."""
    lab.run(CONCURRENT)
    before = lab.checksum("public.t")
    done = ran(lab, ["public.t"], "UPDATE t SET a = 0; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (40)")
    assert taken_back(lab, done, on_conflict="abort").rollback_performed
    assert lab.checksum("public.t") == before


def test_28_force_restores_what_was_before_the_run(edited: tuple[Lab, Execution]) -> None:
    """Whatever others made of the columns that the run had changed; other columns of theirs stay."""
    lab, done = edited
    assert taken_back(lab, done, on_conflict="force").rollback_performed
    assert lab.rows("SELECT * FROM t ORDER BY id") == [
        (1, 1, "mine"), (2, 2, "both"), (3, 3, "b"), *[(i, i, "b") for i in range(4, 10)]
    ]  # fmt: skip


def test_28_force_after_a_rollback_with_conflicts_finishes_it(edited: tuple[Lab, Execution]) -> None:
    """Only the conflicts are looked at again: rows that are back are nobody's business any more."""
    lab, done = edited
    with pytest.raises(PatchRollbackError):
        taken_back(lab, done)
    lab.run("UPDATE t SET a = 77 WHERE id = 5")
    assert taken_back(lab, done, on_conflict="force").rollback_performed
    assert lab.rows("SELECT a FROM t WHERE id IN (2, 5) ORDER BY id") == [(2,), (77,)]


def test_28_what_an_application_wrote_between_two_batches_is_not_lost(newest: Lab) -> None:
    """The run touched the row twice; its own first image is older than the edit in between."""
    newest.run(CONCURRENT)
    with connect(newest.url) as application:

        @data_patch("between")
        class Between(StepPatch):
            target_tables = ("public.t",)

            def steps(self, ctx: PatchContext) -> Sequence[Step]:
                def one(ctx: StepContext) -> None:
                    ctx.execute("UPDATE t SET a = a + 1")

                def two(ctx: StepContext) -> None:
                    application.execute(
                        "UPDATE t SET b = 'theirs' WHERE id = 1; UPDATE t SET a = 50 WHERE id = 2"
                    )
                    ctx.execute("UPDATE t SET a = a + 1")

                return [("one", one), ("two", two)]

        done = newest.executor(Between).execute("between", dry_run=False)
        newest.executor(Between).rollback(done.execution_id)
    assert newest.rows("SELECT * FROM t WHERE id < 4 ORDER BY id") == [
        (1, 1, "theirs"),
        (2, 50, "b"),
        (3, 3, "b"),
    ]


def test_28_rows_that_stay_locked_hold_up_nobody_else(newest: Lab) -> None:
    """The others are taken back; they are named, and the next call finishes the rollback."""
    newest.run(
        "CREATE TABLE public.t (id int PRIMARY KEY, a int, b text); INSERT INTO t SELECT generate_series(1, 500), 0, 'b'"
    )
    before = newest.checksum("public.t")
    done = ran(newest, ["public.t"], "UPDATE t SET a = 1; DELETE FROM t WHERE id > 400")
    with connect(newest.url) as application:
        application.autocommit = False
        application.execute("SELECT FROM t WHERE id IN (7, 300) FOR UPDATE")
        begun = time.monotonic()
        with pytest.raises(PatchRollbackError) as caught:
            roll_back(newest.connection, done, lock_wait_s=0.1)
        assert time.monotonic() - begun < 10
    assert caught.value.found == "public.t 7\npublic.t 300"
    assert newest.rows("SELECT id FROM t WHERE a = 1 ORDER BY id") == [(7,), (300,)]
    assert newest.value("SELECT count(*) FROM keikaku_patches.conflict") == 0
    assert roll_back(newest.connection, done).restored == 2
    assert newest.checksum("public.t") == before


def test_28_new_children_of_others_are_never_taken_along(lab: Lab) -> None:
    """A cascade of the rollback would delete what an application has added; the parent stays instead."""
    lab.run(SHOP)
    done = ran(
        lab,
        SHOP_TABLES,
        "INSERT INTO p VALUES (100, 'new', 1), (101, 'new', 1); UPDATE s SET p_id = 101 WHERE id = 1",
    )
    lab.run("INSERT INTO c VALUES (900, 100, 'theirs')")
    with pytest.raises(PatchRollbackError):
        taken_back(lab, done)
    assert lab.rows("SELECT id FROM p WHERE id >= 100") == [(100,)]
    assert lab.rows("SELECT v FROM c WHERE id = 900") == [("theirs",)]
    assert lab.rows("SELECT table_name, key, why FROM keikaku_patches.conflict") == [
        ("public.p", ["100"], "other rows refer to it")
    ]


REFUSED = {
    "truncate": "TRUNCATE t",
    "ddl": "ALTER TABLE t ADD COLUMN z int",
    "a new table": "CREATE TABLE public.made (id int)",
    "a table from a query": "SELECT 1 AS x INTO public.made",
    "a changed key": "UPDATE t SET id = id + 100",
    "an undeclared table": "UPDATE other SET v = 1",
    "an undeclared table through a function": "SELECT touch_other()",
    "ddl in a function": "SELECT make_table()",
    "commit": "UPDATE t SET a = 0; COMMIT; UPDATE t SET a = 1 / 0",
    "rollback": "UPDATE t SET a = 0; ROLLBACK",
    "concurrently": "CREATE INDEX CONCURRENTLY i ON t (a)",
    "a block": "DO $$ BEGIN UPDATE t SET a = 0; END $$",
    "the switch": "SET LOCAL keikaku.patch = ''; UPDATE t SET a = 0",
    "the switch by a function": "SELECT set_config('keikaku.patch', '', true); UPDATE t SET a = 0",
    "a large object": "SELECT lo_create(0)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_29_what_cannot_be_taken_back_is_refused(newest: Lab, name: str) -> None:
    """FAULTS 15, 16, 88: inside the transaction, which is rolled back; nothing is half done or called done."""
    newest.run(
        CONCURRENT
        + ";CREATE TABLE public.other (id int PRIMARY KEY, v int); INSERT INTO other VALUES (1, 1);"
        "CREATE FUNCTION touch_other() RETURNS void LANGUAGE sql AS 'UPDATE public.other SET v = 2';"
        "CREATE FUNCTION make_table() RETURNS void LANGUAGE plpgsql AS 'BEGIN CREATE TABLE public.made (id int); END'"
    )
    before = newest.checksum("public.t", "public.other")
    with pytest.raises(PatchFailedError) as caught:
        ran(newest, ["public.t"], "UPDATE t SET b = 'first step'", REFUSED[name])
    assert newest.checksum("public.t", "public.other") == before
    assert newest.rows("SELECT to_regclass('public.made'), to_regclass('public.i')") == [(None, None)]
    assert newest.states() == [("failed", "rolled_back")]
    assert newest.leftovers() == []
    assert caught.value.exit_code == 20
    assert newest.value("SELECT count(*) FROM pg_largeobject_metadata") == 0


def test_29_a_step_that_ends_its_transaction_by_another_way_is_found(newest: Lab) -> None:
    """FAULTS 15: should COMMIT slip through, it is said that the patch may be applied in part."""
    newest.run(CONCURRENT)
    before = newest.checksum("public.t")

    @data_patch("sly")
    class Sly(StepPatch):
        target_tables = ("public.t",)

        def run(self, ctx: StepContext) -> None:
            ctx.execute("UPDATE t SET a = 0")
            session = ctx.run.__closure__  # what no patch should do
            assert session is not None
            connection = next(cell.cell_contents for cell in session if hasattr(cell.cell_contents, "pgconn"))
            connection.execute("COMMIT")
            ctx.execute("UPDATE t SET b = 'not kept'")

    with pytest.raises(PatchFailedError, match="may be applied in part"):
        newest.executor(Sly).execute("sly", dry_run=False)
    # What was committed before was kept, so it was taken back; the rest came to nothing.
    assert newest.checksum("public.t") == before
    assert newest.states()[0][0] == "failed"


def test_29_names_with_colons_and_percent_signs_mean_what_they_say(newest: Lab) -> None:
    """FAULTS 89: no variables are expanded in a patch."""
    newest.run(CONCURRENT)
    ran(newest, ["public.t"], "UPDATE t SET b = ':b :''b'' %s' WHERE id = 1".replace("%s", "%(b)"))
    assert newest.value("SELECT b FROM t WHERE id = 1") == ":b :'b' %(b)"


def test_29_a_patch_is_utf_8_in_whatever_encoding_the_database_has(newest: Lab) -> None:
    """FAULTS 74: the server is told the encoding; an accent is one letter in LATIN1 too."""
    name = f"{newest.url.database}_latin1"
    newest.run(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        url = newest.url.with_database(name)
        with connect(url) as connection:
            latin = type(newest)(url, connection)
            latin.run(CONCURRENT)
            done = ran(latin, ["public.t"], "UPDATE t SET b = 'é' WHERE id = 1")
            assert latin.rows("SELECT b, octet_length(b) FROM t WHERE id = 1") == [("é", 1)]
            assert taken_back(latin, done).rollback_performed
    finally:
        newest.run(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_29_a_table_of_somebody_else_is_refused(newest: Lab) -> None:
    """Its changes could not be kept; the remedy names the roles."""
    newest.run(CONCURRENT)
    records.ensure_schema(newest.connection)
    newest.run(
        "GRANT USAGE ON SCHEMA keikaku_patches TO keikaku_owner;"
        "GRANT ALL ON ALL TABLES IN SCHEMA keikaku_patches TO keikaku_owner; SET ROLE keikaku_owner"
    )
    with pytest.raises(AccessDeniedError) as caught:
        undo.arm(newest.connection, uuid4(), ["public.t"])
    newest.run("RESET ROLE")
    assert "public.t of postgres" in caught.value.found


def test_30_writes_of_applications_never_appear_in_undo(lab: Lab) -> None:
    """They write to the same rows and tables while the run goes on, also by COPY and as replicas do."""
    lab.run(CONCURRENT)
    seen: list[Any] = []

    @data_patch("beside")
    class Beside(StepPatch):
        target_tables = ("public.t",)

        def steps(self, ctx: PatchContext) -> Sequence[Step]:
            def work(ctx: StepContext) -> None:
                lab.run(
                    "UPDATE t SET b = 'app' WHERE id = 1; INSERT INTO t VALUES (50, 1); DELETE FROM t WHERE id = 9"
                )
                lab.run("SET session_replication_role = replica; UPDATE t SET a = 7 WHERE id = 7; RESET ALL")
                ctx.execute("UPDATE t SET a = a + 1 WHERE id = 2")

            def look(ctx: StepContext) -> None:
                (one,) = undo.undo_tables(lab.connection, ctx.execution_id)
                log = undo.names_of(ctx.execution_id).log(one.table)
                seen.extend(lab.rows(f"SELECT op::text, c1 FROM {log} ORDER BY seq"))

            return [("work", work), ("look", look)]

    lab.executor(Beside).execute("beside", dry_run=False)
    assert seen == [("-", 2), ("+", 2)]
    assert lab.leftovers() == []


def test_30_what_died_between_dropping_triggers_and_functions_is_swept(newest: Lab) -> None:
    """No trigger is left that would tell of them."""
    newest.run(CONCURRENT)
    done = ran(newest, ["public.t"], "UPDATE t SET a = 0")
    undo.arm(newest.connection, done.execution_id, ["public.t"])
    for (name,) in newest.rows("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'keikaku%'"):
        newest.run(f"DROP TRIGGER {name} ON t")
    assert newest.leftovers()
    assert undo_clean.sweep(newest.connection, retention_days=30).disarmed == (str(done.execution_id),)
    assert newest.leftovers() == []


@pytest.mark.parametrize("format_name", ["plain", "custom"])
def test_30_a_snapshot_of_an_armed_database_restores_anywhere(
    newest: Lab, make_database: MakeDatabase, server: Server, tmp_path: Path, format_name: str
) -> None:
    """The nightly dump, or the one that the patch asks for, does not carry triggers whose functions it lacks."""
    newest.run(CONCURRENT)
    done = ran(newest, ["public.t"], "SELECT 1")
    undo.arm(newest.connection, done.execution_id, ["public.t"])
    with SnapshotManager(newest.url, tmp_path) as manager:
        armed = manager.create_snapshot("armed", format=format_name)
    undo_clean.disarm(newest.connection, done.execution_id)
    other = make_database(server)
    with SnapshotManager(other, tmp_path) as manager:
        manager.restore_snapshot(armed.name, from_other_database=True)
    with connect(other) as connection:
        there = Lab(other, connection)
        assert there.checksum("public.t") == newest.checksum("public.t")
        assert there.leftovers() == []
