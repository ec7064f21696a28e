"""Acceptance 6, 21, 22, 23, 24, 25: whatever goes wrong, the rows are as before."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from keikaku_snapshots.errors import (
    AccessDeniedError,
    KeikakuError,
    MemoryLimitExceededError,
    PatchFailedError,
)
from keikaku_snapshots.patches.backup_point import BackupPoint
from keikaku_snapshots.patches.changes import Reject, Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, data_patch
from tests.patch_samples import AddOne, AddOneByRow
from tests.servers import as_role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.connect import Connection
    from tests.patch_lab import Lab

BOTH = pytest.mark.parametrize("patch", [AddOne, AddOneByRow], ids=lambda patch: patch.name)
SMALL: dict[str, Any] = {"batch_size": 50, "adaptive": False}


class _NoProof(BackupPoint):
    def check(self, connection: Connection, execution_id: UUID) -> None:
        raise AccessDeniedError("the proof of the backup point failed")


def _no_dump(execution_id: UUID, tables: Sequence[str]) -> str:
    raise OSError("no room for the dump")


@pytest.mark.parametrize(
    "options",
    [{"undo": _NoProof()}, {"backup": _no_dump}, {}],
    ids=["undo that is not proved", "dump that fails", "nobody to make a dump"],
)
def test_06_a_failing_backup_step_keeps_the_run_from_starting(lab: Lab, options: dict[str, Any]) -> None:
    """No batch is begun, no row is changed, and no trigger is left."""
    lab.items(100)
    before = lab.checksum()

    with pytest.raises(PatchFailedError):
        lab.executor(AddOne, options=options, backup_dump="undo" not in options).execute(
            "add_one", dry_run=False
        )

    assert lab.checksum() == before
    done = lab.latest()
    assert (done.status, done.sub_state, done.batch_number) == ("failed", "failed", 0)
    assert lab.leftovers() == []
    assert lab.events() == ["failed"]


def test_06_a_table_of_another_role_is_refused(newest: Lab) -> None:
    """Without its owner's rights no trigger can keep its changes."""
    newest.items(10)
    newest.run(
        "GRANT ALL ON SCHEMA public TO keikaku_owner; GRANT SELECT, UPDATE ON item TO keikaku_owner;"
        f'GRANT CREATE ON DATABASE "{newest.url.database}" TO keikaku_owner'
    )

    with pytest.raises(PatchFailedError, match="does not own every target table"):
        newest.executor(AddOne, url=as_role(newest.url, "keikaku_owner")).execute("add_one", dry_run=False)

    assert newest.value("SELECT status || ' ' || sub_state FROM keikaku_patches.execution") == "failed failed"


@data_patch("stumbles")
class Stumbles(RowPatch):
    """Raises in the third batch."""

    table, reads, writes = "public.item", ("qty",), ("qty",)

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Add one until id 120."""
        for row in rows:
            if row.id == 120:
                raise KeyError("山田花子")
            yield Update(row, qty=row.qty + 1)


@data_patch("violates")
class Violates(SqlPatch):
    """Violates a constraint in the third batch."""

    table = "public.item"
    set = {"qty": "CASE WHEN id = 120 THEN -1 ELSE qty + 1 END"}  # noqa: RUF012


def test_21_an_exception_in_a_batch_takes_everything_back(lab: Lab) -> None:
    """The message says which batch and which class, and never what the exception quotes."""
    lab.items(200)
    before = lab.checksum()

    with pytest.raises(PatchFailedError, match="raised KeyError in batch 3") as caught:
        lab.executor(Stumbles, **SMALL).execute("stumbles", dry_run=False)

    assert lab.checksum() == before
    done = lab.latest()
    assert (done.status, done.sub_state, done.rollback_performed) == ("failed", "rolled_back", True)
    assert caught.value.details["execution_id"] == str(done.execution_id)
    assert "Rows taken back: 100." in caught.value.found
    assert "山田" not in str(caught.value) + done.error_message
    assert lab.events() == ["rolled_back"]
    assert lab.leftovers() == []


def test_21_a_refusal_of_the_server_is_told_with_its_sqlstate(lab: Lab) -> None:
    """And with batch and constraint; the row that was refused is not shown."""
    lab.items(200)
    lab.run("ALTER TABLE item ADD CONSTRAINT item_qty CHECK (qty >= 0)")
    before = lab.checksum()

    with pytest.raises(PatchFailedError) as caught:
        lab.executor(Violates, **SMALL).execute("violates", dry_run=False)

    assert lab.checksum() == before
    text = str(caught.value)
    assert "batch 3" in text
    assert "23514" in text
    assert "Constraint: item_qty" in text
    assert "item 120" not in text
    assert lab.latest().error_sqlstate == "23514"
    assert lab.latest().rollback_performed


def _verifying(how: str) -> Any:
    def verify(self: object, ctx: PatchContext) -> None:
        del self
        if how == "query":
            ctx.fetch("SELECT 1 / 0")
        elif how == "write":
            ctx.fetch("DELETE FROM item")
        assert ctx.value("SELECT sum(qty) FROM item") == ctx.recall("total"), "the sum is not what it was"

    return verify


def _remembering(self: object, ctx: PatchContext) -> None:
    del self
    ctx.remember("total", ctx.value("SELECT sum(qty) FROM item"))


@BOTH
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("sum", "raised AssertionError in verifying"),
        ("query", "division by zero"),
        ("write", "may only read"),
    ],
)
def test_22_a_failing_verification_takes_everything_back(
    newest: Lab, patch: Any, how: str, message: str
) -> None:
    """It is compared with what was there at the start; a verification that itself fails is no proof."""
    newest.items(200)
    before = newest.checksum()
    checked = data_patch("checked")(
        type("Checked", (patch,), {"validate": _remembering, "verify": _verifying(how)})
    )

    with pytest.raises(PatchFailedError) as caught:
        newest.executor(checked, **SMALL).execute("checked", dry_run=False)

    assert message in str(caught.value)
    assert newest.checksum() == before
    assert newest.states() == [("failed", "rolled_back")]


@BOTH
def test_22_what_was_remembered_survives_a_pause(newest: Lab, patch: Any) -> None:
    """A decimal is a decimal again."""
    newest.items(200)
    checked = data_patch("checked")(
        type("Checked", (patch,), {"validate": _remembering, "verify": _verifying("sum")})
    )
    executor = newest.executor(checked, **SMALL)
    paused = executor.execute("checked", dry_run=False, progress=lambda _: executor.request_stop())
    # What the run has added is taken away again elsewhere, so that the sum is as it was.
    newest.run("INSERT INTO item VALUES (5000, -200, '')")

    assert newest.executor(checked, **SMALL).resume(paused.execution_id).status == "completed"


@data_patch("rejects")
class Rejects(RowPatch):
    """Rejects the rows whose quantity is above 900."""

    table, reads, writes = "public.item", ("qty",), ("qty",)

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Add one to the others."""
        for row in rows:
            yield Reject(row, "too many") if row.qty > 900 else Update(row, qty=row.qty + 1)


@data_patch("leaves_bad")
class LeavesBad(SqlPatch):
    """Adds one, which leaves those above 900 as they should not be."""

    table = "public.item"
    set = {"qty": "qty + 1"}  # noqa: RUF012

    def verify_batch(self) -> str:
        """None is above 900."""
        return "qty <= 901"


@pytest.mark.parametrize("patch", [Rejects, LeavesBad], ids=lambda patch: patch.name)
@pytest.mark.parametrize(("bad", "passes"), [(99, True), (100, False)], ids=["9.9 %", "10.0 %"])
@pytest.mark.parametrize("dry_run", [True, False], ids=["dry_run", "run"])
def test_23_a_tenth_of_inconsistent_rows_fails(
    newest: Lab, patch: Any, bad: int, *, passes: bool, dry_run: bool
) -> None:
    """All in the last batch, so that the end decides; exactly ten percent is too many."""
    newest.items(1000)
    newest.run(f"UPDATE item SET qty = 1000 WHERE id > {1000 - bad}")
    before = newest.checksum()
    executor = newest.executor(patch, batch_size=100, adaptive=False)

    if passes:
        done = executor.execute(patch.name, dry_run=dry_run)
        assert (done.status, done.inconsistent_records) == ("completed", bad)
        return
    with pytest.raises(PatchFailedError, match="too many rows are not as they should be"):
        executor.execute(patch.name, dry_run=dry_run)
    assert newest.checksum() == before


def test_23_it_is_looked_at_after_every_batch(newest: Lab) -> None:
    """As soon as a hundred rows were seen: a run that goes wrong ends early, and people are told."""
    newest.items(2000)
    newest.run("UPDATE item SET qty = 1000 WHERE id BETWEEN 120 AND 190")
    before = newest.checksum()

    with pytest.raises(PatchFailedError, match="too many rows"):
        newest.executor(Rejects, **SMALL).execute("rejects", dry_run=False)

    done = newest.latest()
    assert (done.batch_number, done.processed_records) == (3, 150)
    assert newest.checksum() == before
    assert newest.events() == ["integrity", "rolled_back"]


def test_23_one_bad_row_of_one_fails_at_the_end(newest: Lab) -> None:
    """A small table has no minimum there."""
    newest.items(1)
    newest.run("UPDATE item SET qty = 1000")

    with pytest.raises(PatchFailedError, match="too many rows"):
        newest.executor(Rejects).execute("rejects", dry_run=False)


MEGABYTE = 1024 * 1024


def _hungry(limit_rows: int) -> type[RowPatch]:
    @data_patch("hungry")
    class Hungry(RowPatch):
        table, reads, writes = "public.item", ("qty",), ("qty",)

        def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
            rows = list(rows)
            last = rows[-1].id
            eaten = bytearray(200 * MEGABYTE) if len(rows) > limit_rows and last > 100 else bytearray()
            for row in rows:
                yield Update(row, qty=row.qty + 1)
            del eaten

    return Hungry


def _limit_mb() -> int:
    return psutil.Process().memory_info().rss // MEGABYTE + 100


def test_24_memory_over_the_limit_takes_everything_back(lab: Lab) -> None:
    """Nothing of that batch is committed; the text has what was used and what was allowed."""
    lab.items(200)
    before = lab.checksum()
    limit = _limit_mb()

    with pytest.raises(MemoryLimitExceededError, match="more memory than it may") as caught:
        lab.executor(_hungry(0), memory_limit_mb=limit, **SMALL).execute("hungry", dry_run=False)

    assert lab.checksum() == before
    done = lab.latest()
    assert (done.status, done.sub_state, done.batch_number) == ("failed", "rolled_back", 2)
    assert done.peak_memory_bytes > limit * MEGABYTE
    assert f"limit: {limit} MB" in caught.value.found
    assert caught.value.exit_code == 27
    assert "memory" in lab.events()


def test_24_a_batch_that_fits_when_it_is_halved_goes_on(lab: Lab) -> None:
    """Once: half of the rows are tried before the run is given up."""
    lab.items(200)

    done = lab.executor(_hungry(30), memory_limit_mb=_limit_mb(), **SMALL).execute("hungry", dry_run=False)

    assert (done.status, done.changed_records) == ("completed", 200)
    assert lab.value("SELECT count(*) FROM item WHERE qty = (id % 100) + 1") == 200
    assert 25 in {row[0] for row in lab.rows("SELECT batch_size FROM keikaku_patches.batch_log")}


def test_24_a_limit_below_what_the_process_needs_anyway_is_refused(newest: Lab) -> None:
    """No batch is begun, and the text says how much it needs."""
    newest.items(10)

    with pytest.raises(MemoryLimitExceededError):
        newest.executor(AddOne).execute("add_one", dry_run=False, memory_limit_mb=5)

    assert newest.states() == [("failed", "failed")]
    assert newest.leftovers() == []


@data_patch("sleeps")
class Sleeps(SqlPatch):
    """Sleeps for half a minute in its third batch."""

    table = "public.item"
    set = {"qty": "CASE WHEN id = 120 THEN length(pg_sleep(30)::text) ELSE qty + 1 END"}  # noqa: RUF012


@data_patch("dawdles")
class Dawdles(RowPatch):
    """The same in Python."""

    table, reads, writes = "public.item", ("qty",), ("qty",)

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Take a rest between rows."""
        for row in rows:
            if row.id > 100:
                time.sleep(0.005)
            yield Update(row, qty=row.qty + 1)


@pytest.mark.parametrize("patch", [Sleeps, Dawdles], ids=lambda patch: patch.name)
def test_25_three_times_the_estimate_is_cancelled_within_a_second(lab: Lab, patch: Any) -> None:
    """In the middle of a statement, or while Python is at work; then everything is taken back."""
    lab.items(2000)
    before = lab.checksum()

    with pytest.raises(PatchFailedError, match="ran much longer than it should"):
        lab.executor(patch, estimated_duration_s=0.2, **SMALL).execute(patch.name, dry_run=False)

    done = lab.latest()
    assert lab.checksum() == before
    assert (done.status, done.sub_state) == ("failed", "rolled_back")
    started, ended = lab.rows(
        "SELECT extract(epoch FROM started_at), extract(epoch FROM completed_at)"
        " FROM keikaku_patches.execution"
    )[0]
    # 0.6 s, a second to notice, and what arming and the rollback take on a busy machine.
    assert float(ended - started) < 0.6 + 1 + 3
    assert lab.events() == ["overtime", "overtime", "rolled_back"]


def test_25_paused_time_does_not_count(lab: Lab) -> None:
    """Neither a pause between batches nor the time until somebody resumes."""
    lab.items(200)

    def dawdle(_: Execution) -> None:
        time.sleep(0.3)

    done = lab.executor(AddOne, max_runtime_s=1.0, pause_s=0.1, **SMALL).execute(
        "add_one", dry_run=False, progress=dawdle
    )

    assert done.status == "completed"
    assert done.active_s < 1.0
    started, ended = lab.rows("SELECT started_at, completed_at FROM keikaku_patches.execution")[0]
    assert (ended - started).total_seconds() > 1.2


@BOTH
def test_a_run_in_one_transaction_is_invisible_until_it_is_committed(lab: Lab, patch: Any) -> None:
    """`mode: single_transaction`: the old promise, and an operator can still take it back afterwards."""
    lab.items(200)
    before = lab.checksum()
    seen: list[str] = []
    executor = lab.executor(patch, mode="single_transaction", **SMALL)

    done = executor.execute(patch.name, dry_run=False, progress=lambda _: seen.append(lab.checksum()))

    assert seen == [before] * 4
    assert (done.status, done.processed_records, done.batch_number) == ("completed", 200, 4)
    assert lab.value("SELECT count(*) FROM item WHERE qty = (id % 100) + 1") == 200
    assert lab.leftovers() == []
    assert executor.rollback(done.execution_id).rollback_performed
    assert lab.checksum() == before


@pytest.mark.parametrize("patch", [Stumbles, Violates], ids=lambda patch: patch.name)
def test_a_run_in_one_transaction_that_fails_has_changed_nothing(lab: Lab, patch: Any) -> None:
    """There is nothing to take back."""
    lab.items(200)
    lab.run("ALTER TABLE item ADD CONSTRAINT item_qty CHECK (qty >= 0)")
    before = lab.checksum()

    with pytest.raises(KeikakuError):
        lab.executor(patch, mode="single_transaction", **SMALL).execute(patch.name, dry_run=False)

    assert lab.checksum() == before
    assert lab.states() == [("failed", "rolled_back")]
    assert lab.rows("SELECT * FROM keikaku_patches.batch_log") == []


def test_a_run_in_one_transaction_that_is_stopped_begins_anew(lab: Lab) -> None:
    """What it had done was never committed."""
    lab.items(200)
    executor = lab.executor(AddOne, mode="single_transaction", **SMALL)
    paused = executor.execute("add_one", dry_run=False, progress=lambda _: executor.request_stop())
    assert paused.sub_state == "paused"

    done = lab.executor(AddOne, **SMALL).resume(paused.execution_id)

    assert (done.status, done.mode, done.processed_records) == ("completed", "single_transaction", 200)
    assert lab.value("SELECT count(*) FROM item WHERE qty = (id % 100) + 1") == 200
