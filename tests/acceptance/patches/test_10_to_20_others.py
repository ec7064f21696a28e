"""Acceptance 10, 11, 12, 14, 18, 19, 20, 34: other runs, other sessions, lost connections, pauses."""

from __future__ import annotations

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest

from keikaku_snapshots.errors import (
    ConnectError,
    LeaseLostError,
    LockBusyError,
    PatchFailedError,
    PatchRefusedError,
    PatchRollbackError,
)
from keikaku_snapshots.patches import lease, undo_clean, worker
from keikaku_snapshots.patches.backup_point import BackupPoint
from keikaku_snapshots.patches.changes import Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, data_patch
from keikaku_snapshots.patches.points import visit
from keikaku_snapshots.patches.settings import EngineSettings
from tests.patch_samples import AddOne, AddOneByRow
from tests.patch_worker import start
from tests.proxy import Proxy
from tests.servers import connect
from tests.waiting import until, until_somebody_waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from uuid import UUID

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.connect import Connection
    from tests.patch_lab import Lab
    from tests.proxy import Verdict

BOTH = pytest.mark.parametrize("patch", [AddOne, AddOneByRow], ids=lambda patch: patch.name)
#: Little patience, so that a test of waiting is short.
IMPATIENT: dict[str, Any] = {"lock_timeout_s": 0.1, "batch_size": 50, "adaptive": False}


def _sums(lab: Lab) -> tuple[Any, ...]:
    """How many rows were done once, and how many otherwise."""
    return lab.rows(
        "SELECT count(*) FILTER (WHERE qty = (id % 100) + 1), count(*) FILTER (WHERE qty <> (id % 100) + 1)"
        " FROM item"
    )[0]


@pytest.mark.parametrize("rounds", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_10_the_same_patch_started_twice_at_once_runs_once(newest: Lab, rounds: int) -> None:
    """Time and again: one runs, the other is refused at once and told by whom."""
    newest.items(3)
    refused = threading.Event()

    @data_patch("waiting")
    class Waiting(RowPatch):
        table, reads, writes = "public.item", ("qty",), ("qty",)

        def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
            assert refused.wait(20)
            for row in rows:
                yield Update(row, qty=row.qty + 1)

    def one(barrier: threading.Barrier) -> Execution | LockBusyError:
        executor = newest.executor(Waiting)
        barrier.wait(20)
        try:
            return executor.execute("waiting", dry_run=False, again=True)
        except LockBusyError as error:
            return error
        finally:
            refused.set()

    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            refused.clear()
            barrier = threading.Barrier(2)
            both = [pool.submit(one, barrier) for _ in range(2)]
            wait(both, 20, "FIRST_EXCEPTION")
            outcomes = [future.result(20) for future in both]
            ran = [outcome for outcome in outcomes if not isinstance(outcome, LockBusyError)]
            busy = [outcome for outcome in outcomes if isinstance(outcome, LockBusyError)]
            assert (len(ran), len(busy)) == (1, 1)
            assert busy[0].details["holder"] == str(ran[0].execution_id)
            assert str(ran[0].execution_id) in str(busy[0])
    assert newest.rows("SELECT qty - id FROM item") == [(rounds,)] * 3
    assert newest.rows("SELECT status, count(*) FROM keikaku_patches.execution GROUP BY 1 ORDER BY 1") == [
        ("completed", rounds),
        ("failed", rounds),
    ]


def test_10_two_patches_of_one_table_do_not_run_at_once(lab: Lab) -> None:
    """Their rows could be the same; the second is refused and told by whom."""
    lab.items(10)
    seen: list[LockBusyError] = []

    def begin_another(running: Execution) -> None:
        with pytest.raises(LockBusyError) as caught:
            lab.executor(AddOneByRow).execute("add_one_by_row", dry_run=False)
        assert caught.value.details["holder"] == str(running.execution_id)
        seen.append(caught.value)

    lab.executor(AddOne).execute("add_one", dry_run=False, progress=begin_another)

    assert "another data patch works on the same table" in str(seen[0])
    assert _sums(lab) == (10, 0)


class HastyBackupPoint(BackupPoint):
    """Does not wait for those who hold a table when it drops its triggers; they are swept later."""

    def disarm(self, connection: Connection, execution_id: UUID) -> None:
        """Try once."""
        undo_clean.disarm(connection, execution_id, lock_wait_s=0)


@contextmanager
def _locked(lab: Lab, query: str) -> Iterator[psycopg.Connection[Any]]:
    """An application that has locked rows and does not commit."""
    with connect(lab.url) as application:
        application.autocommit = False
        application.execute(query.encode())
        yield application


@BOTH
def test_11_locked_rows_are_waited_for(lab: Lab, patch: Any) -> None:
    """An application that commits in time is not even noticed, and its change is not lost."""
    lab.items(200)
    with ThreadPoolExecutor(1) as pool, _locked(lab, "UPDATE item SET name = 'ours' WHERE id = 120") as other:
        run = pool.submit(lab.executor(patch, **IMPATIENT).execute, patch.name, dry_run=False)
        until_somebody_waits(lab.url)
        other.commit()
        done = run.result(30)

    assert (done.status, done.processed_records) == ("completed", 200)
    assert _sums(lab) == (200, 0)
    assert lab.value("SELECT name FROM item WHERE id = 120") == "ours"


@BOTH
def test_11_rows_that_stay_locked_are_put_off_and_done_at_the_end(lab: Lab, patch: Any) -> None:
    """The rest of the table does not wait for them."""
    lab.items(200)
    engine = EngineSettings(batch_attempts=2)
    with _locked(lab, "SELECT FROM item WHERE id IN (60, 61) FOR UPDATE") as other:

        def let_go(running: Execution) -> None:
            if running.batch_number == 4:
                assert lab.rows("SELECT key FROM keikaku_patches.deferred ORDER BY 1") == [
                    (["60"],),
                    (["61"],),
                ]
                other.commit()

        done = lab.executor(patch, engine=engine, **IMPATIENT).execute(
            patch.name, dry_run=False, progress=let_go
        )

    assert (done.status, done.processed_records, done.batch_number) == ("completed", 200, 5)
    assert _sums(lab) == (200, 0)
    assert lab.rows("SELECT * FROM keikaku_patches.deferred") == []


@BOTH
def test_11_rows_that_are_never_free_fail_the_run_and_are_named(lab: Lab, patch: Any) -> None:
    """The message has their number, the details their keys, and everything else is taken back."""
    lab.items(200)
    before = lab.checksum()
    engine = EngineSettings(batch_attempts=2)
    with (
        _locked(lab, "SELECT FROM item WHERE id IN (60, 61) FOR UPDATE"),
        pytest.raises(PatchFailedError, match="held 2 rows locked") as caught,
    ):
        lab.executor(patch, engine=engine, options={"undo": HastyBackupPoint()}, **IMPATIENT).execute(
            patch.name, dry_run=False
        )

    assert caught.value.details["keys"] == [("60",), ("61",)]
    assert lab.checksum() == before
    assert lab.states() == [("failed", "rolled_back")]


def test_11_an_application_waits_at_most_one_batch(lab: Lab) -> None:
    """It writes to the same rows all the time; no wait is longer than the longest batch and its commit."""
    lab.items(6_000)
    waits: list[float] = []
    ended = threading.Event()

    def application() -> None:
        with connect(lab.url) as session:
            number = 0
            while not ended.is_set():
                number = number % 6_000 + 37
                began = time.monotonic()
                session.execute("UPDATE item SET name = name || '.' WHERE id = %s", [number])
                waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(application)
        until(lambda: len(waits) > 10)
        lab.executor(AddOne, batch_size=500, adaptive=False).execute("add_one", dry_run=False)
        ended.set()
        other.result(20)

    longest = lab.value("SELECT max(seconds) FROM keikaku_patches.batch_log")
    # The commit and its own turn on a busy machine come on top.
    assert max(waits) < longest + 0.5
    assert _sums(lab) == (6_000, 0)


@BOTH
@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_12_injected_contention_applies_nothing_twice(lab: Lab, patch: Any, state: str) -> None:
    """Every third statement fails as if another transaction had won; each row is done once."""
    lab.items(300)
    lab.run(
        "CREATE SEQUENCE turn;"
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        "  IF nextval('turn') % 3 = 1 THEN"
        f"    RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END IF;"
        "  RETURN NULL; END $$;"
        "CREATE TRIGGER meddle AFTER UPDATE ON item FOR EACH STATEMENT EXECUTE FUNCTION meddle()"
    )
    known = data_patch("known")(type("Known", (patch,), {"acknowledges": ("triggers",)}))

    done = lab.executor(known, batch_size=40, adaptive=False).execute("known", dry_run=False)

    assert (done.processed_records, done.changed_records, done.batch_number) == (300, 300, 8)
    assert _sums(lab) == (300, 0)


def test_12_a_real_deadlock_is_survived(newest: Lab) -> None:
    """An application locks against the order of the key; one of both is the victim, and nothing is lost."""
    newest.items(100)
    with ThreadPoolExecutor(1) as pool, _locked(newest, "UPDATE item SET name = 'x' WHERE id = 100") as other:
        run = pool.submit(newest.executor(AddOne, lock_timeout_s=10).execute, "add_one", dry_run=False)
        until_somebody_waits(newest.url)
        try:
            other.execute("UPDATE item SET name = 'x' WHERE id = 1")
            other.commit()
        except psycopg.errors.DeadlockDetected:
            other.rollback()
        run.result(30)

    assert _sums(newest) == (100, 0)


def test_14_sizes_grow_towards_the_target(newest: Lab) -> None:
    """At most a fifth from one batch to the next."""
    newest.items(8_000)

    newest.executor(AddOne, batch_size=500, target_batch_s=5.0).execute("add_one", dry_run=False)

    sizes = [
        row[0] for row in newest.rows("SELECT batch_size FROM keikaku_patches.batch_log ORDER BY number")
    ]
    assert sizes[:5] == [500, 600, 720, 864, 1036]


SLOW = (
    "CREATE FUNCTION slow(integer) RETURNS integer LANGUAGE plpgsql AS"
    " 'BEGIN PERFORM pg_sleep(0.002); RETURN $1 + 1; END'"
)


@data_patch("slow")
class Slow(SqlPatch):
    """Two thousandths of a second and more for each row."""

    table = "public.item"
    where = "id > 0"
    set = {"qty": "slow(qty)"}  # noqa: RUF012


def test_14_a_timeout_halves_the_batch_until_it_fits(newest: Lab) -> None:
    """Nothing of the batches that were too long stays."""
    newest.items(60)
    newest.run(SLOW)

    newest.executor(Slow, batch_size=200, statement_timeout_s=0.1).execute("slow", dry_run=False)

    sizes = [
        row[0] for row in newest.rows("SELECT batch_size FROM keikaku_patches.batch_log ORDER BY number")
    ]
    assert sizes[0] in {12, 25}
    assert _sums(newest) == (60, 0)


def test_14_a_size_that_is_not_adaptive_stays(newest: Lab) -> None:
    """Neither speed nor a timeout changes it; a batch that never fits fails the run."""
    newest.items(1_000)
    newest.executor(AddOne, batch_size=300, adaptive=False).execute("add_one", dry_run=False)
    assert newest.rows("SELECT DISTINCT batch_size FROM keikaku_patches.batch_log") == [(300,)]

    newest.run(SLOW)
    engine = EngineSettings(batch_attempts=2)
    with pytest.raises(PatchFailedError, match="cancelled the statement"):
        newest.executor(Slow, engine=engine, batch_size=200, adaptive=False, statement_timeout_s=0.1).execute(
            "slow", dry_run=False
        )


def _third_batch(verdict: Verdict) -> Any:
    """Cut the connection at the COMMIT of the third batch: the one after the third switch."""
    switches, armed = 0, False

    def rule(chunk: bytes, _sent: int) -> Verdict:
        nonlocal switches, armed
        if b"SET LOCAL keikaku.patch" in chunk and b"BEGIN ISOLATION LEVEL READ COMMITTED" in chunk:
            switches += 1
            armed = switches == 3
        if armed and b"COMMIT\0" in chunk:
            armed = False
            return verdict
        return "pass"

    return rule


@BOTH
@pytest.mark.parametrize("verdict", ["cut", "deliver-then-cut"])
def test_18_a_commit_whose_answer_is_lost_is_applied_once(lab: Lab, patch: Any, verdict: Verdict) -> None:
    """Whether the server got it or not is read from the number of the batch."""
    lab.items(500)

    with Proxy(lab.url, _third_batch(verdict)) as proxy:
        done = lab.executor(patch, url=proxy.url, batch_size=100, adaptive=False).execute(
            patch.name, dry_run=False
        )

    assert proxy.cuts == 1
    assert (done.status, done.processed_records, done.batch_number) == ("completed", 500, 5)
    assert _sums(lab) == (500, 0)


@pytest.mark.parametrize("verdict", ["cut", "deliver-then-cut"])
def test_18_the_one_commit_of_a_run_in_one_transaction_may_be_lost_too(newest: Lab, verdict: Verdict) -> None:
    """Completed when the server got it; else nothing was done, and the run waits to be resumed."""
    newest.items(200)
    armed = threading.Event()
    ends = visit(lambda point: armed.set() if point == "before_commit" else None)

    def rule(chunk: bytes, _sent: int) -> Verdict:
        return verdict if armed.is_set() and b"COMMIT\0" in chunk else "pass"

    with Proxy(newest.url, rule) as proxy:
        executor = newest.executor(AddOne, url=proxy.url, mode="single_transaction", batch_size=50)
        try:
            done = executor.execute("add_one", dry_run=False)
        except ConnectError:
            done = newest.latest()
        finally:
            ends()
    assert proxy.cuts == 1
    if verdict == "cut":
        assert (done.status, done.cursor) == ("running", None)
        done = newest.executor(AddOne).resume(done.execution_id)
    assert (done.status, done.processed_records) == ("completed", 200)
    assert _sums(newest) == (200, 0)
    assert newest.leftovers() == []


def test_18_an_old_session_that_is_just_ending_is_waited_for(
    newest: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server shows it no longer, but its locks are not free yet."""
    newest.items(200)
    asked: list[int] = []
    really = lease.take_locks

    def take(connection: Connection, keys: Sequence[int]) -> None:
        asked.append(len(keys))
        if len(asked) == 2:
            raise lease._busy((1, ""), same_patch=True)
        really(connection, keys)

    monkeypatch.setattr(worker, "take_locks", take)
    armed = threading.Event()
    ends = visit(lambda point: armed.set() if point == "before_commit" else None)
    with Proxy(
        newest.url,
        lambda chunk, _sent: "deliver-then-cut" if armed.is_set() and b"COMMIT\0" in chunk else "pass",
    ) as proxy:
        try:
            done = newest.executor(AddOne, url=proxy.url, batch_size=200).execute("add_one", dry_run=False)
        finally:
            ends()
    assert (proxy.cuts, len(asked)) == (1, 3)
    assert (done.status, done.processed_records) == ("completed", 200)


def test_19_a_stopped_worker_cannot_commit_after_another_took_over(lab: Lab) -> None:
    """It sleeps in a batch past its lease; when it wakes up, the run is not its own any more."""
    lab.items(500)
    engine: dict[str, Any] = {"lease_s": 0.5, "heartbeat_s": 0.1}
    sleeper = start(
        lab.url.text,
        "add_one",
        settings={"batch_size": 100, "adaptive": False},
        engine=engine,
        at=["before_commit", 3, "SIGSTOP"],
    )
    try:
        until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED)
        execution = lab.latest()
        with pytest.raises(LockBusyError):
            lab.executor(AddOne, engine=EngineSettings(lease_s=60)).resume(execution.execution_id)
        until(
            lambda: lab.value(
                "SELECT clock_timestamp() - beat_at > interval '0.6 s' FROM keikaku_patches.heartbeat"
            )
        )

        done = lab.executor(AddOne, engine=EngineSettings(**engine)).resume(execution.execution_id)

        assert (done.status, done.processed_records) == ("completed", 500)
        sleeper.send_signal(signal.SIGCONT)
        said = sleeper.communicate(timeout=30)[0]
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert json.loads(said.splitlines()[-1])["error"] == LeaseLostError.__name__
    assert sleeper.returncode == 11
    assert _sums(lab) == (500, 0)


def test_19_a_worker_that_only_seemed_dead_does_not_fight_for_its_run(lab: Lab) -> None:
    """Its session was ended by the one that took over; it sees that the lease is gone and gives way."""
    lab.items(300)
    settings: dict[str, Any] = {"batch_size": 100, "adaptive": False}
    taken: list[Execution] = []

    def take_over(running: Execution) -> None:
        if not taken:
            taken.append(running)
            # No sign of life ever counts as recent.
            other = lab.executor(AddOne, engine=EngineSettings(lease_s=0.0), **settings)
            taken.append(other.resume(running.execution_id))

    with pytest.raises(LeaseLostError):
        lab.executor(AddOne, **settings).execute("add_one", dry_run=False, progress=take_over)

    assert taken[1].status == "completed"
    assert _sums(lab) == (300, 0)


@BOTH
def test_17_a_terminated_session_is_replaced(lab: Lab, patch: Any) -> None:
    """As when an administrator ends it, or the server restarts: the batch is done anew, once."""
    lab.items(300)
    end = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name IN ('keikaku patch ' || %s, 'keikaku patch ' || %s || ' control')"
    )

    def terminate(running: Execution) -> None:
        if running.batch_number == 2:
            lab.run(end, str(running.execution_id), str(running.execution_id))

    done = lab.executor(patch, batch_size=100, adaptive=False).execute(
        patch.name, dry_run=False, progress=terminate
    )

    assert (done.status, done.batch_number, done.lease_token) == ("completed", 3, 2)
    assert _sums(lab) == (300, 0)


def test_20_a_termination_signal_lets_the_batch_finish_and_pauses(lab: Lab) -> None:
    """The exit code is 143; a resumed run does the rest, once."""
    lab.items(500)
    settings: dict[str, Any] = {"batch_size": 100, "adaptive": False}
    stopped = start(lab.url.text, "add_one", settings=settings, at=["before_cursor", 2, "SIGTERM"])
    said, complaint = stopped.communicate(timeout=30)

    assert json.loads(said.splitlines()[-1]) == {"status": "running", "sub_state": "paused"}, complaint
    assert stopped.returncode == 143
    paused = lab.latest()
    assert (paused.sub_state, paused.batch_number, paused.processed_records) == ("paused", 2, 200)

    done = lab.executor(AddOne, **settings).resume(str(paused.execution_id)[:8])

    assert (done.status, done.batch_number, done.lease_token) == ("completed", 5, 2)
    assert _sums(lab) == (500, 0)
    assert lab.leftovers() == []


def test_20_operators_pause_and_cancel(lab: Lab) -> None:
    """By rows of their own, so that a batch at work never has to be waited for."""
    lab.items(500)
    before = lab.checksum()
    executor = lab.executor(AddOne, batch_size=100, adaptive=False)

    def ask(running: Execution) -> None:
        if running.batch_number == 2:
            executor.pause(running.execution_id, actor="sato")

    paused = executor.execute("add_one", dry_run=False, progress=ask)
    assert (paused.status, paused.sub_state, paused.batch_number) == ("running", "paused", 2)
    with pytest.raises(PatchRefusedError, match="has a run that has not ended"):
        executor.execute("add_one", dry_run=False)

    cancelled = executor.cancel(paused.execution_id, actor="sato")

    assert (cancelled.status, cancelled.rollback_performed) == ("failed", True)
    assert lab.checksum() == before
    assert lab.leftovers() == []


def test_20_a_running_patch_is_cancelled_from_outside(lab: Lab) -> None:
    """Its own process takes it back."""
    lab.items(500)
    before = lab.checksum()
    executor = lab.executor(AddOne, batch_size=100, adaptive=False)

    def cancel(running: Execution) -> None:
        executor.cancel(running.execution_id)

    with pytest.raises(PatchFailedError, match="was cancelled"):
        executor.execute("add_one", dry_run=False, progress=cancel)

    assert lab.checksum() == before
    assert lab.states() == [("failed", "cancelled")]
    assert lab.latest().rollback_performed


def test_20_a_run_whose_process_is_dead_is_cancelled_by_the_one_who_asks(lab: Lab) -> None:
    """Nobody else is there to take it back."""
    lab.items(300)
    before = lab.checksum()
    settings: dict[str, Any] = {"batch_size": 100, "adaptive": False}
    killed = start(lab.url.text, "add_one", settings=settings, at=["before_dml", 3, "SIGKILL"])
    killed.communicate(timeout=30)
    execution = lab.latest()
    assert (execution.status, execution.sub_state, execution.batch_number) == ("running", "batching", 2)

    done = lab.executor(AddOne, engine=EngineSettings(lease_s=0.0)).cancel(execution.execution_id)

    assert (done.status, done.rollback_performed) == ("failed", True)
    assert lab.checksum() == before
    assert lab.leftovers() == []


def test_20_a_rollback_that_may_meet_no_conflict_leaves_the_run_as_it_was(lab: Lab) -> None:
    """`abort`: all or nothing; it was nothing, so the run is completed as before."""
    lab.items(20)
    executor = lab.executor(AddOne)
    done = executor.execute("add_one", dry_run=False)
    lab.run("UPDATE item SET qty = 500 WHERE id = 7")
    changed = lab.checksum()

    with pytest.raises(PatchRollbackError, match="nothing was taken back"):
        executor.rollback(done.execution_id, on_conflict="abort")

    assert lab.checksum() == changed
    assert lab.states() == [("completed", "done")]
    with pytest.raises(PatchRollbackError, match="except 1 row "):
        executor.rollback(done.execution_id)
    assert lab.states() == [("failed", "rolled_back_with_conflicts")]
    assert lab.rows("SELECT id, qty FROM item WHERE qty <> id % 100") == [(7, 500)]


def test_a_wrong_address_is_told_at_once(newest: Lab) -> None:
    """Only a run that is under way waits for a server to come back."""
    began = time.monotonic()

    with pytest.raises(ConnectError):
        newest.executor(AddOne, url=replace(newest.url, port=1)).execute("add_one", dry_run=False)

    assert time.monotonic() - began < 5


def test_34_a_changed_source_is_not_resumed_and_a_completed_patch_does_not_run_again(lab: Lab) -> None:
    """Half of the rows with the old source and half with the new one is what nobody has reviewed."""
    lab.items(300)
    executor = lab.executor(AddOne, batch_size=100, adaptive=False)
    paused = executor.execute("add_one", dry_run=False, progress=lambda _: executor.request_stop())
    assert (paused.sub_state, paused.batch_number) == ("paused", 1)

    changed = data_patch("add_one")(type("Changed", (AddOne,), {"set": {"qty": "qty + 2"}}))
    with pytest.raises(PatchRefusedError, match="was changed since this run began"):
        lab.executor(changed).resume(paused.execution_id)

    done = lab.executor(AddOne).resume(paused.execution_id)
    assert done.status == "completed"
    assert _sums(lab) == (300, 0)
    with pytest.raises(PatchRefusedError, match="has run already") as caught:
        lab.executor(AddOne).execute("add_one", dry_run=False)
    assert caught.value.details["other"] == str(done.execution_id)
    assert lab.executor(AddOne).execute("add_one", dry_run=False, again=True).status == "completed"
    with pytest.raises(PatchRefusedError, match="cannot be resumed"):
        lab.executor(AddOne).resume(done.execution_id)
