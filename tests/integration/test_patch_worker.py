"""The worker of data patches, with the real engine; only its clock is set by the tests."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from keikaku_snapshots.config_patches import PatchConfiguration
from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.operations.patch_worker import Duties, PatchWorker, Worked, duties_of
from keikaku_snapshots.patches.definition import SqlPatch, data_patch
from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.schedule import ScheduleEntry
from keikaku_snapshots.patches.settings import PatchSettings
from keikaku_snapshots.patches.windows import Window, Windows
from keikaku_snapshots.postgres.connect import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL

TOKYO = ZoneInfo("Asia/Tokyo")
SATURDAY = datetime(2026, 11, 28, 12, 0, tzinfo=TOKYO)
SUNDAY = datetime(2026, 11, 29, 2, 10, tzinfo=TOKYO)
WEDNESDAY = datetime(2026, 12, 2, 2, 10, tzinfo=TOKYO)
ROWS, BATCH = 300, 100


@data_patch("count_up")
class CountUp(SqlPatch):
    """Add one to each quantity."""

    table = "public.stock"
    set = {"quantity": "quantity + 1"}  # noqa: RUF012 - a declaration


@data_patch("refuse")
class Refuse(SqlPatch):
    """Find something wrong each time."""

    table = "public.stock"
    set = {"quantity": "0"}  # noqa: RUF012 - a declaration

    def validate(self, ctx: PatchContext) -> None:
        """Refuse."""
        del ctx
        raise UsageError("nobody may do this")


REGISTRY = DataPatchRegistry([CountUp, Refuse], shipped=False, entry_points=False)
COUNT_UP = ScheduleEntry(name="nightly", patch="count_up", cron="5 2 * * sun,mon,tue")
#: Dry runs are dated by the server, whose clock no test sets.
AGE_H = 1_000_000.0
CONFIGURATION = PatchConfiguration(
    patches={"count_up": PatchSettings(batch_size=BATCH, adaptive=False, dry_run_max_age_h=AGE_H)},
    windows=Windows((Window(days=("sun", "wed"), start="02:00", end="04:00"),)),
    schedule=(COUNT_UP,),
    registry=REGISTRY,
)


class World:
    """A database, a clock, and workers that come one after the other."""

    def __init__(self, url: DatabaseURL, connection: Connection) -> None:
        self.url = url
        self.connection = connection
        self.now = SATURDAY

    def executor(self, configuration: PatchConfiguration = CONFIGURATION) -> Engine:
        """Make an engine like that of the command line."""
        return Engine(self.url, configuration, clock=lambda: self.now)

    def work(self, configuration: PatchConfiguration = CONFIGURATION, duties: Duties | None = None) -> Worked:
        """Let a new worker make one pass."""
        engine = self.executor(configuration)
        return PatchWorker(self.url, configuration, engine, duties, clock=lambda: self.now).run_once()

    def runs(self, kind: str = "run") -> list[tuple[str, str, str]]:
        """State and actor of all runs, the first one first."""
        rows = self.connection.execute(
            "SELECT status, sub_state, actor FROM keikaku_patches.execution WHERE kind = %s"
            " ORDER BY created_at",
            [kind],
        )
        return [(row[0], row[1], row[2]) for row in rows]

    def quantities(self) -> list[int]:
        """The different quantities there are."""
        rows = self.connection.execute("SELECT DISTINCT quantity FROM stock ORDER BY quantity")
        return [row[0] for row in rows]


class Engine(DataPatchExecutor):
    """The executor, on which a test can look at each batch."""

    def __init__(self, url: DatabaseURL, configuration: PatchConfiguration, **options: Any) -> None:
        super().__init__(url, configuration, **options)
        self.watch: Any = None

    def execute(
        self,
        name: str,
        dry_run: bool = True,
        params: Mapping[str, Any] | None = None,
        actor: str | None = None,
        **options: Any,
    ) -> Execution:
        """Run it with the test looking on."""
        if self.watch is not None:
            options["progress"] = self.watch
        return super().execute(name, dry_run, params, actor, **options)


@pytest.fixture
def world(shared_database: DatabaseURL) -> Iterator[World]:
    """Three batches of rows; the entry of the schedule was seen on Saturday."""
    with connect(shared_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE stock (id int PRIMARY KEY, quantity int NOT NULL)")
        connection.execute("INSERT INTO stock SELECT n, 0 FROM generate_series(1, %s) AS n", [ROWS])
        world = World(shared_database, connection)
        assert world.work() == Worked()
        yield world


def test_where_nothing_is_to_be_done_nothing_is_left(shared_database: DatabaseURL) -> None:
    """A worker for a database without patches makes no schema there and says nothing."""
    done = World(shared_database, None).work(replace(CONFIGURATION, schedule=()))  # type: ignore[arg-type]

    assert (done, done.exit_code) == (Worked(), 0)
    with connect(shared_database, autocommit=True) as connection:
        row = connection.execute("SELECT to_regnamespace('keikaku_patches')").fetchone()
    assert row == (None,)


def test_what_is_due_runs_once_in_an_open_window(world: World) -> None:
    """After the dry run that the patch needs; the next passes find nothing to do."""
    world.now = SUNDAY

    done = world.work()

    assert done.started["nightly"].status == "completed"
    assert world.work() == Worked()
    assert world.runs() == [("completed", "done", "schedule nightly")]
    assert world.runs("dry_run") == [("completed", "done", "schedule nightly")]
    assert world.quantities() == [1]


def test_what_is_due_while_all_windows_are_closed_waits_for_the_next_one(world: World) -> None:
    """Monday's and Tuesday's times make one run on Wednesday; waiting is no failure."""
    world.now = SUNDAY + timedelta(days=1)
    waiting = world.work()

    assert (waiting.exit_code, waiting.started) == (0, {})
    assert waiting.waiting == [
        "schedule nightly: no window is open; next: 2026-12-01T17:00:00+00:00"  # 02:00 in Tokyo
    ]
    world.now = WEDNESDAY
    assert world.work().started["nightly"].status == "completed"
    assert world.quantities() == [1]


def test_a_run_that_the_end_of_a_window_stopped_goes_on_in_the_next_one(world: World) -> None:
    """In between, passes leave it alone; the schedule does not start it a second time."""
    engine = world.executor()

    def close(execution: Execution) -> None:
        if execution.kind == "run":
            world.now = SUNDAY + timedelta(hours=2)

    engine.watch = close
    weekly = replace(CONFIGURATION, schedule=(replace(COUNT_UP, cron="5 2 * * sun"),))
    world.now = SATURDAY
    world.work(weekly)
    world.now = SUNDAY
    stopped = PatchWorker(world.url, weekly, engine, clock=lambda: world.now).run_once()
    between = world.work(weekly)
    world.now = WEDNESDAY
    done = world.work(weekly)

    assert stopped.started["nightly"].sub_state == "window_closed"
    assert (between.resumed, between.exit_code, len(between.waiting)) == ([], 0, 1)
    assert [execution.status for execution in done.resumed] == ["completed"]
    assert world.quantities() == [1]


@pytest.mark.parametrize("by_operator", [True, False], ids=["operator", "signal"])
def test_only_an_operators_pause_holds(world: World, by_operator: bool) -> None:
    """What SIGTERM paused goes on with the next pass; what an operator paused waits for the operator."""
    world.now = SUNDAY
    engine = world.executor()

    def pause(execution: Execution) -> None:
        if execution.kind == "run" and execution.batch_number == 1:
            if by_operator:
                engine.pause(execution.execution_id, "somebody")
            else:
                engine.request_stop()

    engine.watch = pause
    paused = PatchWorker(world.url, CONFIGURATION, engine, clock=lambda: world.now).run_once()
    done = world.work()

    assert paused.started["nightly"].sub_state == "paused"
    assert [execution.status for execution in done.resumed] == ([] if by_operator else ["completed"])
    assert world.quantities() == ([0, 1] if by_operator else [1])


def test_a_worker_that_is_stopped_says_so(world: World) -> None:
    """SIGTERM is exit code 143, and nothing new is begun."""
    world.now = SUNDAY
    worker = PatchWorker(world.url, CONFIGURATION, world.executor(), clock=lambda: world.now)
    worker.request_stop()

    done = worker.run_once()

    assert (done.exit_code, done.started) == (143, {})
    assert world.work().started["nightly"].status == "completed"


def test_a_second_worker_only_delivers(world: World) -> None:
    """It comes while the first one is at work, starts nothing, and is quiet about it."""
    world.now = SUNDAY
    engine = world.executor()
    second: list[Worked] = []

    def come(execution: Execution) -> None:
        if execution.kind == "run" and execution.batch_number == 1:
            second.append(world.work(duties=Duties(deliver=lambda: 1)))

    engine.watch = come
    PatchWorker(world.url, CONFIGURATION, engine, clock=lambda: world.now).run_once()

    (other,) = second
    assert (other.is_alone, other.started, other.delivered, other.exit_code) == (False, {}, 1, 0)
    assert world.runs() == [("completed", "done", "schedule nightly")]


def test_many_workers_at_once_run_an_entry_once(world: World) -> None:
    """However many passes begin at the same moment."""
    world.now = SUNDAY
    begin = threading.Barrier(4)
    found: list[Worked] = []

    def work() -> None:
        begin.wait()
        found.append(world.work())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(len(done.started) for done in found) == 1
    assert [done.exit_code for done in found] == [0] * 4
    assert world.quantities() == [1]


def test_an_entry_that_fails_does_not_keep_the_others_from_running(world: World) -> None:
    """The pass ends with the exit code of what failed; it is not tried again before its next time."""
    bad = ScheduleEntry(name="bad", patch="refuse", cron="5 2 * * *")
    both = replace(CONFIGURATION, schedule=(bad, COUNT_UP))
    world.work(both)
    world.now = SUNDAY

    done = world.work(both)
    again = world.work(both)

    assert list(done.failures) == ["schedule bad"]
    assert done.exit_code == done.failures["schedule bad"].exit_code != 0
    assert done.started["nightly"].status == "completed"
    assert again == Worked()


def test_a_patch_that_somebody_runs_by_hand_is_put_off(world: World) -> None:
    """Busy is no failure; the next pass runs it."""
    world.now = SUNDAY
    by_hand = world.executor()
    meanwhile: list[Worked] = []

    def come(execution: Execution) -> None:
        if execution.batch_number == 1 and not meanwhile:
            meanwhile.append(world.work())

    by_hand.execute("count_up", dry_run=True)
    by_hand.execute("count_up", dry_run=False, progress=come)
    after = world.work()

    assert (meanwhile[0].exit_code, meanwhile[0].started) == (0, {})
    assert meanwhile[0].waiting
    assert after.started["nightly"].status == "completed"
    assert world.quantities() == [2]


def test_a_dead_run_that_fails_when_it_is_resumed_is_told(world: World) -> None:
    """It is taken back, and the pass ends with the exit code of a failed patch."""
    world.now = SUNDAY
    engine = world.executor()

    def stop(execution: Execution) -> None:
        if execution.kind == "run" and execution.batch_number == 1:
            engine.request_stop()

    engine.watch = stop
    PatchWorker(world.url, CONFIGURATION, engine, clock=lambda: world.now).run_once()
    world.connection.execute("UPDATE keikaku_patches.execution SET sub_state = 'batching' WHERE kind = 'run'")
    world.connection.execute("UPDATE keikaku_patches.execution SET created_at = now() - interval '1 hour'")
    world.connection.execute("UPDATE keikaku_patches.heartbeat SET beat_at = now() - interval '1 hour'")
    world.connection.execute("ALTER TABLE stock ADD CHECK (quantity < 1) NOT VALID")

    done = world.work()

    assert [execution.sub_state for execution in done.reaped] == ["rolled_back"]
    assert done.exit_code == 20
    assert world.quantities() == [0]


def test_the_other_duties_are_done_with_every_pass(world: World) -> None:
    """Messages and retention; one that fails is told, and the others are still done."""

    def fail() -> int:
        raise UsageError("no")

    done = world.work(duties=Duties(purge=fail, deliver=lambda: 3))

    assert (done.delivered, done.exit_code) == (3, 2)
    assert list(done.failures) == ["dropping what is older than its retention"]


def test_the_configured_duties_work_on_a_real_database(world: World) -> None:
    """Nothing is old and nothing is due: nothing is done, nothing fails."""
    configuration = replace(
        CONFIGURATION, audit=replace(CONFIGURATION.audit, log_encryption=False), schedule=()
    )

    done = world.work(configuration, duties_of(world.url, configuration))

    assert done == Worked()
