"""Acceptance 1, 2, 4, 5, 7, 8, 9: which patches there are, and which rows they reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.errors import (
    PatchDefinitionError,
    PatchFailedError,
    PatchRefusedError,
    UnknownPatchError,
    UsageError,
)
from keikaku_snapshots.patches.changes import Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, data_patch
from keikaku_snapshots.patches.registry import DataPatchRegistry
from tests.patch_samples import AddOne, AddOneByRow, Everything, Steps

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.context import PatchContext
    from tests.patch_lab import Lab

BOTH = pytest.mark.parametrize("patch", [AddOne, AddOneByRow], ids=lambda patch: patch.name)


def test_01_registered_patches_are_listed_and_found(tmp_path: Path) -> None:
    """Shipped ones and those of files that are named, sorted; each with what it is for."""
    file = tmp_path / "ours.py"
    file.write_text(
        "from keikaku_snapshots.patches import SqlPatch, data_patch\n"
        "@data_patch('zero_prices', version=3)\n"
        "class Zero(SqlPatch):\n    '''Set prices to zero.'''\n"
        "    table = 'public.inventories'\n    set = {'price': '0'}\n"
    )
    registry = DataPatchRegistry(modules=[file], entry_points=False)

    assert [patch.name for patch in registry.list()] == [
        "batch_expiry_update",
        "inventory_price_adjustment",
        "zero_prices",
    ]
    found = registry.find("zero_prices")
    assert (found.version, found.description, found.tables()) == (
        3,
        "Set prices to zero.",
        ("public.inventories",),
    )


def test_01_an_unknown_name_says_what_is_known(newest: Lab) -> None:
    """The nearest name is offered; nothing is recorded."""
    executor = newest.executor()

    with pytest.raises(UnknownPatchError, match="no data patch 'inventory_price'") as caught:
        executor.execute("inventory_price")

    assert "Did you mean inventory_price_adjustment?" in caught.value.found
    assert executor.status() == []


def test_01_a_name_that_is_taken_adds_nothing() -> None:
    """Of several patches none is added when one of them has the name of another."""

    @data_patch("add_one")
    class Second(SqlPatch):
        table = "public.other"
        set = {"a": "1"}  # noqa: RUF012

    registry = DataPatchRegistry([AddOne], shipped=False, entry_points=False)

    with pytest.raises(PatchDefinitionError, match="two data patches are called 'add_one'"):
        registry.add(Steps, Second)
    assert [patch.name for patch in registry.list()] == ["add_one"]


def test_01_a_declaration_is_checked_when_it_is_made() -> None:
    """Everything that needs no database is said at once, in a line each."""
    with pytest.raises(PatchDefinitionError) as caught:

        @data_patch("wrong")
        class Wrong(SqlPatch):
            key = ("id", "")
            set = {"id": "1"}  # noqa: RUF012

    assert caught.value.found.splitlines() == [
        "key must be a tuple of names, such as ('id',).",
        "It names no table.",
        "It changes the key column 'id'; then no row could be followed.",
    ]


def test_01_wrong_parameters_are_listed_with_their_paths(newest: Lab) -> None:
    """Unknown and wrong ones, all at once; nothing is recorded."""
    executor = newest.executor()

    with pytest.raises(UsageError) as caught:
        executor.execute("inventory_price_adjustment", params={"percent": "much", "percentage": 3})

    assert caught.value.found.splitlines()[0] == "parameters.percentage: unknown"
    assert caught.value.found.splitlines()[1].startswith(
        "parameters.percent: Input should be a valid decimal"
    )
    assert executor.status() == []


class _Refusing(SqlPatch):
    table = "public.item"
    set = {"qty": "0"}  # noqa: RUF012


def _raise(kind: type[BaseException]) -> Any:
    def validate(self: object, ctx: PatchContext) -> None:
        del self
        if kind is ZeroDivisionError:
            ctx.fetch("SELECT 1 / 0")
        raise kind("not today")

    return validate


def _leaves_nothing_behind(lab: Lab, kind: type[BaseException]) -> None:
    lab.items(100)
    before = lab.checksum()
    patch = data_patch("refusing")(type("Refusing", (_Refusing,), {"validate": _raise(kind)}))

    with pytest.raises(PatchFailedError):
        lab.executor(patch).execute("refusing", dry_run=False)

    assert lab.checksum() == before
    assert lab.states() == [("failed", "failed")]
    assert lab.leftovers() == []
    assert lab.value("SELECT count(*) FROM keikaku_patches.undo") == 0
    assert lab.events() == ["failed"]


def test_02_a_failing_validate_leaves_nothing_behind(lab: Lab) -> None:
    """Failed, the rows as before, no undo table, no trigger, and somebody is told."""
    _leaves_nothing_behind(lab, ZeroDivisionError)


@pytest.mark.parametrize("kind", [PatchRefusedError, ValueError, AssertionError])
def test_02_whatever_validate_raises(newest: Lab, kind: type[BaseException]) -> None:
    """A refusal of its own, or a mistake in it."""
    _leaves_nothing_behind(newest, kind)


def _cannot_write(lab: Lab, statement: str, *, dry_run: bool) -> None:
    lab.items(50)
    before = lab.checksum()

    @data_patch("sly")
    class Sly(RowPatch):
        table, reads, writes = "public.item", ("qty",), ("qty",)

        def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
            ctx.fetch(statement)
            for row in rows:
                yield Update(row, qty=1)

    with pytest.raises(PatchFailedError) as caught:
        lab.executor(Sly).execute("sly", dry_run=dry_run)

    assert lab.checksum() == before
    assert "SQLSTATE" in caught.value.found
    assert lab.latest().status == "failed"


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry_run", "run"])
def test_04_a_row_patch_that_writes_in_transform_is_refused(lab: Lab, *, dry_run: bool) -> None:
    """It gets no connection that can write, neither in a dry run nor in a real one."""
    _cannot_write(lab, "UPDATE item SET qty = 0", dry_run=dry_run)


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry_run", "run"])
@pytest.mark.parametrize("statement", ["SET TRANSACTION READ WRITE", "CREATE TABLE x (a int)"])
def test_04_it_cannot_make_the_connection_writable_either(
    newest: Lab, statement: str, *, dry_run: bool
) -> None:
    """The mode is fixed by the first query of the transaction."""
    _cannot_write(newest, statement, dry_run=dry_run)


def test_04_transform_may_read(lab: Lab) -> None:
    """Queries of its own see what others have committed."""
    lab.items(10)
    lab.run("CREATE TABLE rate (factor integer); INSERT INTO rate VALUES (7)")

    @data_patch("reading")
    class Reading(RowPatch):
        table, reads, writes = "public.item", (), ("qty",)

        def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
            factor = ctx.value("SELECT factor FROM rate")
            for row in rows:
                yield Update(row, qty=factor)

    lab.executor(Reading).execute("reading", dry_run=False)

    assert lab.rows("SELECT DISTINCT qty FROM item") == [(7,)]


def test_05_the_record_of_a_success_is_complete(lab: Lab) -> None:
    """Who, what, when, how much: nothing is missing when it is over."""
    lab.items(100)

    done = lab.executor(Everything, inconsistency_limit=0.5).execute(
        "everything", dry_run=False, actor="mori"
    )

    assert (done.status, done.sub_state, done.kind, done.dry_run) == ("completed", "done", "run", False)
    assert (done.patch_name, done.patch_version, done.actor) == ("everything", 1, "mori")
    assert done.started_at is not None
    assert done.completed_at is not None
    assert done.created_at <= done.started_at <= done.completed_at
    assert done.target_tables == ("public.item",)
    assert (done.cursor, done.upper_key, done.batch_number) == (("100",), ("100",), 1)
    counts = (done.processed_records, done.changed_records, done.unchanged_records, done.rejected_records)
    assert counts == (100, 65, 43, 2)
    assert done.inconsistent_records == 2
    assert done.peak_memory_bytes > 10_000_000
    assert done.active_s > 0
    assert len(done.source_hash) == len(done.parameters_hash) == 64
    assert (done.error_message, done.rollback_performed, done.lease_token) == ("", False, 1)
    assert lab.events() == ["completed"]
    assert lab.rows("SELECT key, why FROM keikaku_patches.rejected ORDER BY key") == [
        (["30"], "odd one"),
        (["70"], "odd one"),
    ]
    assert lab.rows("SELECT phase, number, processed, changed FROM keikaku_patches.batch_log") == [
        ("run", 1, 100, 65)
    ]
    assert lab.leftovers() == []


def test_05_the_record_of_a_failure_is_complete(lab: Lab) -> None:
    """Where it failed, why, and that it was taken back."""
    lab.items(100)

    @data_patch("dividing")
    class Dividing(SqlPatch):
        table = "public.item"
        set = {"qty": "1000 / (id - 70)::integer"}  # noqa: RUF012

    with pytest.raises(PatchFailedError) as caught:
        lab.executor(Dividing, batch_size=30, adaptive=False).execute("dividing", dry_run=False)

    done = lab.latest()
    assert (done.status, done.sub_state, done.rollback_performed) == ("failed", "rolled_back", True)
    assert (done.error_sqlstate, done.batch_number) == ("22012", 2)
    assert "batch 3" in done.error_message
    assert str(done.execution_id) in caught.value.found
    assert done.completed_at is not None


def test_05_the_record_of_a_dry_run_is_complete(lab: Lab) -> None:
    """It has the counts, a sample, a plan and the size of the undo, and has changed nothing."""
    lab.items(100)

    done = lab.executor(AddOne).execute("add_one")

    assert (done.status, done.kind, done.dry_run) == ("completed", "dry_run", True)
    assert (done.processed_records, done.changed_records, done.estimated_records) == (100, 100, 100)
    assert done.estimated_s is not None
    assert done.findings["sample"][0] == {
        "table": "public.item",
        "key": ["1"],
        "kind": "update",
        "columns": {"qty": ["1", "2"]},
    }
    assert "Update on item" in done.findings["plan"]
    assert done.findings["undo_bytes"] > 0


@BOTH
def test_07_a_predicate_that_the_patch_itself_changes_meets_each_row_once(lab: Lab, patch: Any) -> None:
    """With OFFSET half of the rows would be left out, and rows that come after a change done twice."""
    lab.items(2_000)
    lab.run("UPDATE item SET qty = 999")

    done = lab.executor(patch, batch_size=150).execute(patch.name, dry_run=False)

    assert lab.rows("SELECT qty, count(*) FROM item GROUP BY qty") == [(1000, 2_000)]
    assert done.processed_records == 2_000


KEYS = {
    "gaps": ("a bigint", "i * 1000 - 7"),
    "uuid": ("a uuid", "md5(i::text)::uuid"),
    "text": ("a text", "'k%'''||chr(20 + i % 90) || i || '\\\"'"),
    "text of a language": ("a varchar(40)", "'キー' || i"),
    "composite": ("a integer, b text", "i / 10, 'x' || i % 10"),
    "timestamp": ("a timestamptz", "timestamptz '2020-01-01 00:00+09' + i * interval '1.000001 s'"),
    "numeric": ("a numeric", "i * 1.50"),
    "char": ("a char(12)", "'c' || i"),
    "negative float": ("a double precision", "(i - 300) / 7.0"),
}


@BOTH
@pytest.mark.parametrize("name", KEYS)
def test_08_every_kind_of_key_reaches_each_row_once(newest: Lab, name: str, patch: Any) -> None:
    """Keys travel as the server's own texts, in its own order, whatever they hold."""
    columns, values = KEYS[name]
    key = tuple(part.split()[0] for part in columns.split(", "))
    newest.run(
        f"CREATE TABLE keyed ({columns}, qty integer NOT NULL DEFAULT 5, PRIMARY KEY ({', '.join(key)}));"
        f"INSERT INTO keyed SELECT {values} FROM generate_series(1, 600) i"
    )
    keyed = data_patch("keyed")(type("Keyed", (patch,), {"table": "public.keyed", "key": key}))

    done = newest.executor(keyed, batch_size=100, adaptive=False).execute("keyed", dry_run=False)

    assert newest.rows("SELECT qty, count(*) FROM keyed GROUP BY qty") == [(6, 600)]
    assert (done.processed_records, done.batch_number) == (600, 6)


@BOTH
def test_08_an_empty_table_is_done_at_once(newest: Lab, patch: Any) -> None:
    """No batch, no failure."""
    newest.items(0)

    done = newest.executor(patch).execute(patch.name, dry_run=False)

    assert (done.status, done.batch_number, done.processed_records, done.upper_key) == (
        "completed",
        0,
        0,
        None,
    )


def test_08_a_table_without_a_key_is_refused(lab: Lab) -> None:
    """No row of it could be followed, or taken back; so does a key that is no unique index."""
    lab.run("CREATE TABLE item (id bigint, qty integer, name text)")

    with pytest.raises(PatchRefusedError, match="cannot be run safely") as caught:
        lab.executor(AddOne).execute("add_one", dry_run=False)
    assert "public.item: it has no primary key." in caught.value.found

    lab.run("ALTER TABLE item ADD other integer PRIMARY KEY")
    with pytest.raises(PatchDefinitionError, match="does not fit") as misfit:
        lab.executor(AddOne).execute("add_one", dry_run=False)
    assert "unique index without NULLs, in that order: (other)" in misfit.value.found
    assert lab.states() == [("failed", "failed")] * 2


def test_08_tables_that_hide_their_effects_are_refused(lab: Lab) -> None:
    """Triggers, rules and cascades into undeclared tables, all named at once; acknowledged ones pass."""
    lab.items(10)
    lab.run(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER stamp BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION f();"
        "CREATE TABLE part (id int PRIMARY KEY, item bigint REFERENCES item ON DELETE CASCADE)"
    )

    with pytest.raises(PatchRefusedError) as caught:
        lab.executor(Everything).execute("everything", dry_run=False)

    assert caught.value.found.splitlines() == [
        "public.item: triggers would run in each batch: stamp",
        "public.item: foreign key part_item_fkey would change rows of part; add it to target_tables.",
    ]
    known = data_patch("known")(type("Known", (AddOne,), {"acknowledges": ("triggers",)}))
    assert lab.executor(known).execute("known", dry_run=False).processed_records == 10


@BOTH
def test_09_rows_above_the_frozen_key_are_not_touched_and_the_run_ends(lab: Lab, patch: Any) -> None:
    """An application that adds rows faster than they are done would keep a run going for ever."""
    lab.items(500)
    added = iter(range(10_000))

    def add(_: object) -> None:
        lab.run(f"INSERT INTO item SELECT 10000 + {next(added)}, 0, 'new'")

    done = lab.executor(patch, batch_size=50, adaptive=False).execute(patch.name, dry_run=False, progress=add)

    assert done.processed_records == 500
    assert lab.rows("SELECT qty, count(*) FROM item WHERE id >= 10000 GROUP BY 1") == [(0, 10)]


@BOTH
def test_09_one_match_in_very_many_stays_under_the_statement_timeout(newest: Lab, patch: Any) -> None:
    """A bounded number of rows is looked at in a statement, and an empty step is committed."""
    newest.run(
        "CREATE TABLE item (id bigint PRIMARY KEY, qty integer NOT NULL, name text NOT NULL);"
        "INSERT INTO item SELECT i, 5000, '' FROM generate_series(1, 60000) i;"
        "UPDATE item SET qty = 1 WHERE id = 59000;"
        # Looking at a row takes a moment: all of them would take 60000 of these.
        "CREATE FUNCTION slow(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS"
        " 'BEGIN FOR i IN 1..40 LOOP NULL; END LOOP; RETURN $1; END'"
    )
    sparse = data_patch("sparse")(type("Sparse", (patch,), {"where": "slow(qty) < 1000"}))

    done = newest.executor(sparse, batch_size=100, adaptive=False, statement_timeout_s=0.25).execute(
        "sparse", dry_run=False
    )

    assert (done.processed_records, done.batch_number) == (1, 30)
    assert newest.rows("SELECT id, qty FROM item WHERE qty <> 5000") == [(59000, 2)]
