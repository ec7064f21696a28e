"""Acceptance 15, 16, 17, 30: a run that dies at any point is finished, or taken back, as if it never had."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, get_args

import pytest

from keikaku_snapshots.errors import LockBusyError, PatchFailedError
from keikaku_snapshots.patches.definition import SqlPatch, data_patch
from keikaku_snapshots.patches.points import Point, visit
from keikaku_snapshots.patches.settings import EngineSettings
from tests.patch_lab import Lab
from tests.patch_samples import Everything
from tests.servers import connect, create_database
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.execution import Execution
    from tests.conftest import FreshServer

#: Points of a run that succeeds, with the number of the visit at which it dies.
RUN_POINTS = [
    ("before_arm", 1), ("after_arm", 1), ("before_dml", 2), ("after_dml", 2), ("before_cursor", 1),
    ("after_cursor", 3), ("before_commit", 2), ("after_commit", 2), ("before_verify", 1), ("in_verify", 1),
    ("after_verify", 1), ("before_completed", 1), ("before_disarm", 1),
]  # fmt: skip
ROLLBACK_POINTS = [
    ("before_rollback", 1),
    ("in_rollback", 1),
    ("in_rollback", 3),
    ("in_rollback", 6),
    ("after_rollback", 1),
]
#: Who gives no sign of life for so long is dead.
ENGINE = EngineSettings(lease_s=0.0, heartbeat_s=0.05)
SMALL: dict[str, Any] = {"batch_size": 25, "adaptive": False, "inconsistency_limit": 1.1}


@data_patch("everything_but")
class EverythingBut(Everything):
    """The same, and in the end it is not as it should be."""

    def verify(self, ctx: PatchContext) -> None:
        """Fail."""
        raise ValueError("not as it should be")


def die_at(work: Callable[[], object], point: str, times: int) -> bool:
    """Do the work in a child that is killed at the n-th visit of a point; True when it came there."""
    child = os.fork()
    if child == 0:
        left = [times]

        def visitor(reached: str) -> None:
            if reached == point:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        visit(visitor)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def until_free(work: Callable[[], Any]) -> Any:
    """Do the work when the server has noticed the death of the one before."""
    done: list[Any] = []

    def tried() -> bool:
        try:
            done.append(work())
        except LockBusyError:
            return False
        return True

    until(tried)
    return done[0]


def reaped(lab: Lab, patch: Any, **settings: Any) -> Execution:
    """Look after the dead until there is none."""
    executor = lab.executor(patch, engine=ENGINE, **SMALL, **settings)
    until(lambda: (executor.reap(), executor.status()[0].is_over and not lab.leftovers())[1])
    return executor.status()[0]


def test_15_every_point_is_known() -> None:
    """A new point needs its kill."""
    assert {point for point, _ in (*RUN_POINTS, *ROLLBACK_POINTS)} == set(get_args(Point))


#: What the table is before and after a run that nobody disturbs; the same everywhere.
_UNDISTURBED: list[str] = []


def uninterrupted(lab: Lab) -> tuple[str, str]:
    """What the table is before, and after a run that nobody disturbs; the table is as before then."""
    lab.items(120)
    if not _UNDISTURBED:
        before = lab.checksum()
        done = lab.executor(Everything, **SMALL).execute("everything", dry_run=False)
        _UNDISTURBED.extend([before, lab.checksum()])
        lab.executor(Everything).rollback(done.execution_id)
    before, after = _UNDISTURBED
    assert lab.checksum() == before != after
    return before, after


@pytest.mark.parametrize(("point", "times"), RUN_POINTS)
def test_15_killed_anywhere_a_resumed_run_ends_as_if_never_interrupted(
    newest: Lab, point: str, times: int
) -> None:
    """Work, undo and cursor are committed together, so nothing is lost and nothing is done twice."""
    before, after = uninterrupted(newest)
    executor = newest.executor(Everything, engine=ENGINE, **SMALL)
    assert die_at(lambda: executor.execute("everything", dry_run=False, again=True), point, times)

    ended = reaped(newest, Everything)

    if point in {"before_arm", "after_arm"}:
        # Nothing was changed yet; the run is closed and may be begun again.
        assert (ended.status, newest.checksum()) == ("failed", before)
    else:
        assert (ended.status, newest.checksum()) == ("completed", after)
        until_free(lambda: executor.rollback(ended.execution_id))
        assert newest.checksum() == before
    assert newest.leftovers() == []
    assert executor.reap() == []


@pytest.mark.parametrize(("point", "times"), [("after_dml", 2), ("after_commit", 3)])
def test_16_killed_with_the_policy_rollback_everything_is_as_at_the_start(
    lab: Lab, point: str, times: int
) -> None:
    """On each version; the triggers are gone too."""
    before, _ = uninterrupted(lab)
    executor = lab.executor(Everything, engine=ENGINE, **SMALL)
    assert die_at(lambda: executor.execute("everything", dry_run=False, again=True), point, times)

    ended = reaped(lab, Everything, on_crash="rollback")

    assert lab.checksum() == before
    assert (ended.status, ended.sub_state, ended.rollback_performed) == ("failed", "rolled_back", True)
    assert lab.leftovers() == []


@pytest.mark.parametrize(("point", "times"), ROLLBACK_POINTS)
def test_16_killed_in_the_rollback_it_is_finished_and_a_third_one_changes_nothing(
    newest: Lab, point: str, times: int
) -> None:
    """FAULTS 44, 46: wherever it died, also twice."""
    newest.items(120)
    before = newest.checksum()
    executor = newest.executor(EverythingBut, engine=ENGINE, **SMALL)
    assert die_at(lambda: executor.execute("everything_but", dry_run=False), point, times)
    die_at(lambda: until_free(executor.reap), "in_rollback", 2)

    until(lambda: (executor.reap(), executor.status()[0].is_over)[1])

    ended = executor.status()[0]
    assert newest.checksum() == before
    assert (ended.status, ended.sub_state, ended.rollback_performed) == ("failed", "rolled_back", True)
    newest.run("UPDATE item SET name = 'later' WHERE id = 1")
    later = newest.checksum()
    assert executor.rollback(ended.execution_id).rollback_performed
    assert newest.checksum() == later
    assert newest.leftovers() == []


def test_16_with_the_policy_leave_nothing_is_touched(newest: Lab) -> None:
    """Somebody will look at it; the rows stay as they are."""
    newest.items(120)
    executor = newest.executor(Everything, engine=ENGINE, on_crash="leave", **SMALL)
    assert die_at(lambda: executor.execute("everything", dry_run=False), "after_commit", 2)
    half = newest.checksum()
    (left,) = until_free(lambda: executor.reap() or _raise(LockBusyError("not yet")))
    assert (left.status, left.sub_state, newest.checksum()) == ("running", "batching", half)


def _raise(error: Exception) -> Any:
    raise error


def test_16_a_living_run_is_not_reaped(newest: Lab) -> None:
    """It gives signs of life and holds its lock."""
    newest.items(60)
    seen: list[Any] = []
    other = newest.executor(Everything, engine=ENGINE, **SMALL)
    newest.executor(Everything, engine=ENGINE, **SMALL).execute(
        "everything", dry_run=False, progress=lambda _: seen.append(other.reap())
    )
    assert seen
    assert not any(seen)


@data_patch("slow")
class Slow(SqlPatch):
    """Sleeps in its batches, so that the server can be stopped in one."""

    table = "public.item"
    set = {"qty": "qty + 1 + coalesce(length(pg_sleep(0.02)::text), 0)"}  # noqa: RUF012 - a declaration


@pytest.mark.parametrize("how", ["immediate", pytest.param("kill", marks=pytest.mark.slow)])
def test_17_a_server_that_goes_down_in_a_batch_leaves_a_consistent_state(
    fresh_server: FreshServer, how: str
) -> None:
    """Restarted, the run goes on from the last committed batch: each row once."""
    server = fresh_server(18, fsync="on", full_page_writes="on", synchronous_commit="on")
    url = create_database(server)
    with connect(url) as connection:
        Lab(url, connection).items(100)
    begun = os.fork()
    if begun == 0:
        try:
            with connect(url) as connection:
                Lab(url, connection).executor(Slow, engine=ENGINE, batch_size=10, adaptive=False).execute(
                    "slow", dry_run=False
                )
        finally:
            os._exit(0)
    with connect(url) as connection:
        lab = Lab(url, connection)
        until(lambda: lab.value("SELECT to_regclass('keikaku_patches.batch_log')") is not None)
        until(lambda: lab.value("SELECT count(*) FROM keikaku_patches.batch_log") >= 2)
        os.kill(begun, signal.SIGSTOP)
        if how == "immediate":
            postmaster = server.embedded.status()
            assert postmaster is not None
            os.kill(postmaster.pid, signal.SIGQUIT)
            until(lambda: server.embedded.status() is None)
        else:
            server.kill()
    os.kill(begun, signal.SIGKILL)
    os.waitpid(begun, 0)
    server.start()
    with connect(url) as connection:
        lab = Lab(url, connection)
        ended = reaped(lab, Slow)
        assert ended.status == "completed"
        assert lab.rows("SELECT DISTINCT qty - (id % 100) FROM item") == [(1,)]
        lab.executor(Slow).rollback(ended.execution_id)
        assert lab.rows("SELECT DISTINCT qty - (id % 100) FROM item") == [(0,)]
        assert lab.leftovers() == []


def test_17_a_terminated_backend_costs_its_batch_only(lab: Lab) -> None:
    """The run takes a new connection and goes on; the old one can commit nothing any more."""
    lab.items(100)
    ended: list[int] = []

    def terminate(running: Execution) -> None:
        if running.batch_number == 2 and not ended:
            lab.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE application_name = 'keikaku patch {running.execution_id}'"
            )
            ended.append(1)

    done = lab.executor(Everything, **SMALL).execute("everything", dry_run=False, progress=terminate)

    assert ended
    assert (done.status, done.processed_records) == ("completed", 100)
    assert (
        lab.value("SELECT count(*) FROM item WHERE id % 40 < 10 AND id < 1000000 AND qty <> id % 100 + 1")
        == 0
    )


def test_17_a_terminated_backend_in_a_rollback_costs_its_batch_only(lab: Lab) -> None:
    """The rollback goes on over a new connection."""
    lab.items(120)
    before = lab.checksum()
    executor = lab.executor(EverythingBut, **SMALL)
    seen = [0]

    def visitor(point: str) -> None:
        if point == "in_rollback":
            seen[0] += 1
            if seen[0] in {2, 4}:
                lab.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database()"
                    " AND application_name ~ '^keikaku patch .{36}$'"
                )

    end = visit(visitor)
    try:
        with pytest.raises(PatchFailedError):
            executor.execute("everything_but", dry_run=False)
    finally:
        end()
    assert seen[0] > 4
    assert lab.checksum() == before
