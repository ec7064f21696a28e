"""Ways in which a run could lose, damage or overstate something, each found by looking for it."""

# ruff: noqa: E501 - SQL reads better in long lines

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import BaseModel, SecretStr

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.errors import (
    KeikakuError,
    PatchDefinitionError,
    PatchFailedError,
    PatchRefusedError,
    PatchRollbackError,
    UsageError,
)
from keikaku_snapshots.patches import drive, ending, undo_clean
from keikaku_snapshots.patches.changes import Delete, Insert, Reject, Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, StepPatch, data_patch
from keikaku_snapshots.patches.settings import EngineSettings
from tests.patch_samples import AddOne, AddOneByRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.context import PatchContext, StepContext
    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution
    from tests.patch_lab import Lab


def by_row(transform: Callable[[list[Row]], Iterable[Change]], **declared: Any) -> type[RowPatch]:
    """Make a row-wise patch of a function."""

    def call(_self: RowPatch, rows: Iterable[Row], _ctx: PatchContext) -> Iterable[Change]:
        return transform(list(rows))

    names = {"table": "public.item", "writes": ("qty", "name"), "transform": call}
    return data_patch("by_row")(type("ByRow", (RowPatch,), names | declared))


def by_sql(**declared: Any) -> type[SqlPatch]:
    """Make a set-based patch."""
    names = {"table": "public.item", "set": {"qty": "qty + 1"}}
    return data_patch("by_sql")(type("BySql", (SqlPatch,), names | declared))


def run(lab: Lab, patch: type[Patch], **settings: Any) -> Execution:
    """Run a patch."""
    return lab.executor(patch, **settings).execute(patch.name, dry_run=False, again=True)


def state(lab: Lab) -> tuple[str, str]:
    """Where the latest execution is."""
    return lab.states()[-1]


def interrupt(*_: object, **__: object) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


@data_patch("interrupted")
class Interrupted(SqlPatch):
    """Ctrl-C, as often as asked for, while it is validated."""

    table = "public.item"
    set: ClassVar = {"qty": "qty + 1"}
    times = 0

    def validate(self, ctx: PatchContext) -> None:
        """Be interrupted."""
        del ctx
        if Interrupted.times > 0:
            Interrupted.times -= 1
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_in_its_validation_does_its_rows_when_it_is_resumed(newest: Lab) -> None:
    """It had no last key yet; called paused it was resumed without one, and completed with no row."""
    newest.items(30)
    Interrupted.times = 1
    executor = newest.executor(Interrupted)

    with pytest.raises(KeyboardInterrupt):
        executor.execute("interrupted", dry_run=False)
    done = executor.resume(newest.latest().execution_id)

    assert (done.status, done.processed_records) == ("completed", 30)


def test_a_completed_run_is_not_called_paused_by_an_interruption(
    newest: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping triggers may wait for a long time, and it is only cleaning."""
    newest.items(30)
    monkeypatch.setattr(drive, "disarm", interrupt)

    with pytest.raises(KeyboardInterrupt):
        run(newest, AddOne)

    assert state(newest) == ("completed", "done")


def test_an_interrupted_rollback_is_never_continued_as_a_run(
    newest: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that had been taken back would not be done again, and the run would call itself completed."""
    newest.items(30)
    before = newest.checksum()
    executor = newest.executor(AddOne, batch_size=10, adaptive=False)
    paused = executor.execute("add_one", dry_run=False, progress=lambda _: executor.request_stop())
    executor = newest.executor(AddOne, batch_size=10, adaptive=False)
    with monkeypatch.context() as patched:
        patched.setattr(ending, "take_back", interrupt)
        for go_on in (executor.rollback, executor.resume):
            with pytest.raises(KeyboardInterrupt):
                go_on(paused.execution_id)
            assert state(newest) == ("running", "rolling_back")

    executor.resume(paused.execution_id)

    assert state(newest) == ("failed", "rolled_back")
    assert newest.checksum() == before


QUICK = EngineSettings(heartbeat_s=0.05, lease_s=0.2)


def test_an_aborted_rollback_leaves_a_completed_run_completed(newest: Lab) -> None:
    """Called unfinished it was taken for dead, and reaped by the rollback that nobody wanted."""
    newest.items(30)
    done = run(newest, AddOne)
    newest.run("UPDATE item SET qty = 777 WHERE id = 3")
    before = newest.checksum()
    executor = newest.executor(AddOne, engine=QUICK)

    with pytest.raises(PatchRollbackError, match="nothing was taken back"):
        executor.rollback(done.execution_id, on_conflict="abort")

    assert state(newest) == ("completed", "done")
    time.sleep(2 * QUICK.lease_s)
    assert executor.reap() == []
    assert newest.checksum() == before


def test_a_rollback_that_died_goes_on_as_it_was_wanted(newest: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``force``, and not with what the settings say."""
    newest.items(30)
    before = newest.checksum()
    done = run(newest, AddOne)
    newest.run("UPDATE item SET qty = 777 WHERE id = 3")
    executor = newest.executor(AddOne)
    with monkeypatch.context() as patched:
        patched.setattr(ending, "take_back", interrupt)
        with pytest.raises(KeyboardInterrupt):
            executor.rollback(done.execution_id, on_conflict="force")

    executor.rollback(done.execution_id)

    assert state(newest) == ("failed", "rolled_back")
    assert newest.checksum() == before


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE item DROP COLUMN qty",
        "ALTER TABLE item ALTER qty TYPE bigint",
        "DROP TABLE item",
        "",
    ],
)
def test_a_run_that_cannot_be_taken_back_any_more_stays_completed(newest: Lab, ddl: str) -> None:
    """Nothing was changed, so the record says what it said before; ``""`` is undo that was dropped."""
    newest.items(30)
    done = run(newest, AddOne)
    if ddl:
        newest.run(ddl)
    else:
        undo_clean.drop(newest.connection, done.execution_id)

    with pytest.raises(PatchRollbackError):
        newest.executor(AddOne).rollback(done.execution_id)

    assert state(newest) == ("completed", "done")


def test_a_table_that_was_renamed_since_is_taken_back(newest: Lab) -> None:
    """With its columns; rows are found by what the table is, not by what it is called."""
    newest.items(30)
    before = newest.checksum()
    done = run(newest, AddOne)
    newest.run("ALTER TABLE item RENAME qty TO amount; ALTER TABLE item RENAME TO article")

    newest.executor(AddOne).rollback(done.execution_id)

    assert newest.checksum("public.article") == before


PARTITIONS = """
CREATE TABLE part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200);
CREATE TABLE kid (id int PRIMARY KEY, p int REFERENCES part_1 ON DELETE CASCADE);
INSERT INTO part SELECT i, i FROM generate_series(1, 150) i;
INSERT INTO kid SELECT i, i FROM generate_series(1, 20) i;
"""
DELETE_ALL: dict[str, Any] = {"table": "public.part", "writes": ("v",)}


def test_a_cascade_of_one_partition_is_seen(lab: Lab) -> None:
    """A foreign key may refer to a partition alone; what it deleted was not kept, and stayed away."""
    lab.run(PARTITIONS)
    before = lab.checksum("public.part", "public.kid")

    with pytest.raises(PatchRefusedError, match="cannot be run safely"):
        run(lab, by_row(lambda rows: [Delete(row) for row in rows], **DELETE_ALL))
    both = by_row(lambda rows: [Delete(row) for row in rows], target_tables=("kid",), **DELETE_ALL)
    done = run(lab, both)

    assert lab.value("SELECT count(*) FROM kid") == 0
    lab.executor(both).rollback(done.execution_id)
    assert lab.checksum("public.part", "public.kid") == before


def test_a_trigger_of_one_partition_is_seen(lab: Lab) -> None:
    """It writes where nobody looks, as one of the whole table does."""
    lab.run(PARTITIONS)
    lab.run(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM kid; RETURN NEW; END $$;"
        "CREATE TRIGGER other AFTER UPDATE ON part_1 FOR EACH ROW EXECUTE FUNCTION f()"
    )

    with pytest.raises(PatchRefusedError, match="cannot be run safely") as caught:
        run(lab, by_sql(table="public.part", set={"v": "v + 1"}))

    assert "other" in caught.value.found


def _twice(rows: list[Row]) -> Iterable[Change]:
    yield Update(rows[0], qty=5)
    yield Update(rows[1], qty=6, name="six")
    yield Update(rows[1], qty=7)


def test_of_two_updates_of_a_row_the_later_value_counts(newest: Lab) -> None:
    """Whatever was said of other rows before."""
    newest.items(2)

    done = run(newest, by_row(_twice))

    assert newest.rows("SELECT qty, name FROM item ORDER BY id") == [(5, "item 1"), (7, "six")]
    assert (done.processed_records, done.changed_records, done.unchanged_records) == (2, 2, 0)


@pytest.mark.parametrize(
    "answers",
    [
        lambda row: [Update(row, qty=99), Reject(row, "bad")],
        lambda row: [Reject(row, "bad"), Delete(row)],
        lambda row: [Delete(row), Update(row, qty=99)],
    ],
)
def test_answers_that_contradict_each_other_are_refused(
    newest: Lab, answers: Callable[[Row], list[Change]]
) -> None:
    """A row that was rejected is left as it is, or it was not rejected."""
    newest.items(3)
    before = newest.checksum()
    patch = by_row(lambda rows: [change for row in rows for change in answers(row)])

    for dry_run in (True, False):
        with pytest.raises(KeikakuError) as caught:
            newest.executor(patch, inconsistency_limit=1.1).execute("by_row", dry_run=dry_run)
        assert "It says of the row 1 two of these" in str(caught.value)

    assert newest.checksum() == before


def test_a_table_without_a_schema_is_the_one_in_public(newest: Lab) -> None:
    """Not the first one of that name that is declared."""
    newest.items(2)
    newest.run(
        "CREATE SCHEMA old; CREATE TABLE old.log (id int PRIMARY KEY); CREATE TABLE log (id int PRIMARY KEY)"
    )

    run(
        newest,
        by_row(lambda rows: [Insert("log", id=row.id) for row in rows], target_tables=("old.log", "log")),
    )

    assert newest.rows("SELECT count(*) FROM old.log UNION ALL SELECT count(*) FROM log") == [(0,), (2,)]
    newest.run("DROP SCHEMA old CASCADE")


def test_a_text_in_an_array_that_is_too_long_is_refused(newest: Lab) -> None:
    """It was cut where values are compared, so that the row was called as it should be."""
    newest.run(
        "CREATE TABLE tagged (id int PRIMARY KEY, tags varchar(5)[]); INSERT INTO tagged VALUES (1, '{abcde}')"
    )
    patch = by_row(lambda rows: [Update(rows[0], tags=["abcdefgh"])], table="public.tagged", writes=("tags",))

    with pytest.raises(PatchFailedError, match=r"too long|does not fit"):
        run(newest, patch)


@pytest.mark.parametrize("patch", [AddOne, AddOneByRow])
def test_a_key_whose_operators_are_out_of_sight_is_refused(lab: Lab, patch: type[Patch]) -> None:
    """Sorted as citext and compared as text, 95 rows of 100 were left out of a run that was completed."""
    if not lab.rows("SELECT FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("citext is not installed")
    lab.run(
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;"
        "CREATE TABLE item (id ext.citext PRIMARY KEY, qty int);"
        "INSERT INTO item SELECT CASE WHEN i > 95 THEN 'Z' ELSE 'a' END || i, 0 FROM generate_series(1, 100) i"
    )

    with pytest.raises(PatchRefusedError, match="order of the key"):
        run(lab, patch)
    lab.run(f"ALTER DATABASE {lab.url.database} SET search_path = public, ext")
    try:
        assert run(lab, patch, batch_size=7).changed_records == 100
    finally:
        lab.run(f"ALTER DATABASE {lab.url.database} RESET search_path")


def run_disturbed(lab: Lab, patch: type[Patch], ddl: str) -> PatchFailedError:
    """Run a patch whose table somebody changes after the first batch."""

    def progress(execution: Execution) -> None:
        if execution.batch_number == 1:
            lab.run(ddl)

    executor = lab.executor(patch, batch_size=10, adaptive=False)
    with pytest.raises(PatchFailedError) as caught:
        executor.execute(patch.name, dry_run=False, progress=progress)
    return caught.value


@pytest.mark.parametrize("patch", [AddOne, AddOneByRow])
def test_a_batch_whose_changes_would_not_be_kept_is_not_committed(lab: Lab, patch: type[Patch]) -> None:
    """A loader that switched all triggers off in mid-run made a rollback leave rows, and call itself whole."""
    lab.items(30)
    before = lab.checksum()

    error = run_disturbed(lab, patch, "ALTER TABLE item DISABLE TRIGGER ALL")

    assert "would not have been kept" in str(error)
    assert "Rows taken back: 10" in error.found
    assert lab.checksum() == before
    assert state(lab) == ("failed", "rolled_back")
    assert lab.leftovers() == []


@pytest.mark.parametrize("patch", [AddOne, AddOneByRow])
def test_a_table_that_takes_the_place_of_the_changed_one_in_mid_run_is_told(
    newest: Lab, patch: type[Patch]
) -> None:
    """It holds rows of the first batch, so a run is not called taken back before a person has decided."""
    newest.items(30)
    before = newest.checksum()
    swap = (
        "ALTER TABLE item RENAME TO old_item; CREATE TABLE item (LIKE old_item INCLUDING ALL);"
        "INSERT INTO item SELECT * FROM old_item"
    )

    error = run_disturbed(newest, patch, swap)

    assert isinstance(error, PatchRollbackError)
    assert "would not have been kept" in error.found
    assert "another table has the name" in str(error)
    newest.run("DROP TABLE item; ALTER TABLE old_item RENAME TO item")
    newest.executor(patch).rollback(newest.latest().execution_id)
    assert newest.checksum() == before
    assert state(newest) == ("failed", "rolled_back")
    assert newest.leftovers() == []


class Secret(BaseModel):
    """A parameter that nobody may see."""

    token: SecretStr


def test_a_secret_is_not_in_the_plan_and_the_sample_of_a_dry_run(newest: Lab) -> None:
    """The server quotes parameters in EXPLAIN, and a changed column may hold one."""
    newest.items(30)
    patch = by_sql(params=Secret, where="name <> %(token)s", set={"name": "%(token)s || id"})

    newest.executor(patch).execute("by_sql", params={"token": "S3cret'Canary"})

    stored = str(newest.rows("SELECT e::text FROM keikaku_patches.execution e"))
    assert "Canary" not in stored
    assert "item 1" in stored


@pytest.mark.parametrize("text", ["name LIKE '%test'", "name LIKE '%box'", "name LIKE '%s'", "id % 2 = 0"])
def test_a_percent_sign_that_is_not_doubled_is_refused(newest: Lab, text: str) -> None:
    """``%t`` was taken for a parameter: the condition met no row, and the run was completed."""
    newest.items(3)

    with pytest.raises(PatchDefinitionError, match="declared wrongly"):
        by_sql(where=text)
    with pytest.raises(PatchDefinitionError, match="declared wrongly"):
        by_sql(set={"name": f"CASE WHEN {text} THEN 'a' ELSE 'b' END"})
    with pytest.raises(PatchDefinitionError, match="does not fit"):
        run(newest, by_sql(verify_batch=lambda _: text))
    assert run(newest, by_sql(where="name LIKE '%%2' AND id %% 2 = 0")).changed_records == 1


def test_unique_values_that_are_exchanged_within_a_batch_come_back(newest: Lab) -> None:
    """A deferred constraint allows it, forwards and backwards; where it falls between two batches it fails whole."""
    newest.run(
        "CREATE TABLE item (id int PRIMARY KEY, qty int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO item SELECT i, i FROM generate_series(1, 40) i"
    )
    before = newest.checksum()
    patch = by_sql(set={"qty": "CASE WHEN mod(id, 2) = 0 THEN qty - 1 ELSE qty + 1 END"})

    done = run(newest, patch, batch_size=10)
    assert done.changed_records == 40
    newest.executor(patch).rollback(done.execution_id)
    assert newest.checksum() == before
    with pytest.raises(PatchFailedError, match="unique"):
        run(newest, patch, batch_size=5, adaptive=False)

    assert newest.checksum() == before
    assert newest.leftovers() == []


class OptionalSecret(BaseModel):
    """A secret with a default, and one further down."""

    token: SecretStr = SecretStr("default")
    inner: list[SecretStr] = []


def test_a_run_is_not_resumed_with_the_default_of_a_secret_that_it_was_given(newest: Lab) -> None:
    """Secrets are not stored, so half of the rows would get another value without a word."""
    newest.items(30)
    patch = by_sql(params=OptionalSecret, set={"name": "%(token)s"})
    executor = newest.executor(patch, batch_size=10, adaptive=False)
    secrets: dict[str, Any] = {"token": "S3cret", "inner": ["S4cret"]}
    paused = executor.execute(
        "by_sql", dry_run=False, params=secrets, progress=lambda _: executor.request_stop()
    )
    assert paused.parameters == {"token": "***", "inner": "***"}

    executor = newest.executor(patch)
    with pytest.raises(UsageError, match="with the secrets that it began with") as caught:
        executor.resume(paused.execution_id)
    assert "Not given: inner, token" in caught.value.found
    executor.resume(paused.execution_id, params=secrets)

    assert newest.rows("SELECT DISTINCT name FROM item") == [("S3cret",)]
    assert "S3cret" not in str(newest.rows("SELECT e::text FROM keikaku_patches.execution e"))


@data_patch("one_step")
class OneStep(StepPatch):
    """One statement of its own."""

    target_tables = ("public.item",)

    def run(self, ctx: StepContext) -> None:
        """Add one."""
        ctx.execute("UPDATE item SET qty = qty + 1")


def test_a_step_may_work_in_a_database_that_has_a_checkpoint(newest: Lab) -> None:
    """The checkpoint keeps the same changes, in a table of its own that no patch declares."""
    newest.items(30)
    before = newest.checksum()
    with SnapshotManager(newest.url) as manager:
        manager.checkpoint()

        done = run(newest, OneStep)

        assert done.changed_records == 30
        newest.executor(OneStep).rollback(done.execution_id)
        assert newest.checksum() == before


def test_the_first_patch_of_a_database_with_a_checkpoint_changes_no_schema_of_the_user(newest: Lab) -> None:
    """Our own schema is made by it; a rewind goes back all the same."""
    newest.items(30)
    newest.run("DROP SCHEMA IF EXISTS keikaku_patches CASCADE")
    before = newest.checksum()
    with SnapshotManager(newest.url) as manager:
        manager.checkpoint()
        run(newest, OneStep)

        assert manager.rewind().path == "replica"
        assert newest.checksum() == before


@data_patch("double_rows")
class DoubleRows(RowPatch):
    """Adds a copy of each row, at the end or among the others."""

    table = "public.item"
    reads = ("qty", "name")
    places: ClassVar[list[int]] = []

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Add a row for each."""
        del ctx
        for row in rows:
            if self.places:
                yield Insert("public.item", id=self.places.pop(), qty=row.qty, name=row.name)


@pytest.mark.parametrize(("place", "is_refused"), [(55, True), (5, False), (1000, False)])
def test_a_row_patch_never_works_on_rows_that_it_added(newest: Lab, place: int, is_refused: bool) -> None:
    """They were not there in the dry run; what is behind the cursor or above the last key is no matter."""
    newest.items(60)
    newest.run("DELETE FROM item WHERE id IN (5, 55)")
    before = newest.checksum()
    DoubleRows.places[:] = [place]

    if is_refused:
        with pytest.raises(PatchFailedError, match="would come upon later"):
            run(newest, DoubleRows, batch_size=20)
        assert newest.checksum() == before
    else:
        assert run(newest, DoubleRows, batch_size=20).processed_records == 58


def test_a_table_under_the_name_of_the_one_that_was_changed_stops_the_rollback(newest: Lab) -> None:
    """It holds the patched rows: to change the renamed one back would be called a rollback and be none."""
    newest.items(30)
    done = run(newest, AddOne)
    newest.run("CREATE TABLE item_copy (LIKE item INCLUDING ALL); INSERT INTO item_copy SELECT * FROM item")
    newest.run("ALTER TABLE item RENAME TO item_old; ALTER TABLE item_copy RENAME TO item")
    before = newest.checksum(), newest.checksum("item_old")

    with pytest.raises(PatchRollbackError, match="another table has the name"):
        newest.executor(AddOne).rollback(done.execution_id)

    assert (newest.checksum(), newest.checksum("item_old")) == before
    assert state(newest) == ("completed", "done")
