"""Patches killed, cut off and disturbed by an application, at random: every row is accounted for."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.patches import records, undo
from keikaku_snapshots.patches.settings import EngineSettings
from tests.campaigns import patch_storm
from tests.campaigns.patch_storm import StormRows, StormSet, edit, ended, in_child, problems, unexplained
from tests.patch_lab import Lab
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.campaigns.conftest import Campaign
    from tests.conftest import MakeDatabase
    from tests.servers import Server

#: Places where a process may die, with the most visits that it survives.
POINTS = {
    "after_arm": 1,
    "before_dml": 4,
    "after_dml": 4,
    "before_cursor": 4,
    "after_cursor": 4,
    "before_commit": 4,
    "after_commit": 4,
    "in_verify": 1,
    "before_completed": 1,
    "before_disarm": 1,
    "in_rollback": 4,
    "after_rollback": 1,
}
ENGINE = EngineSettings(lease_s=0.0, heartbeat_s=0.05)
#: Longest time that a run may take to its end, whatever happens to it.
_PATIENCE_S = 60


class Round:
    """One run and what befalls it."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        self.lab = lab
        self.dice = dice
        self.patch = dice.choice([StormSet, StormRows])
        self.executor = lab.executor(
            self.patch,
            engine=ENGINE,
            batch_size=dice.choice([20, 50, 100]),
            adaptive=False,
            lock_timeout_s=0.5,
            on_crash=dice.choice(["resume", "resume", "rollback"]),
        )
        self.deaths = 0
        self.cuts = 0

    @property
    def by_rows(self) -> bool:
        """Whether the patch works row by row."""
        return self.patch is StormRows

    def child(self, work: Callable[[], object], deadly: float) -> int:
        """Do work in a child that may die or lose its connections; returns its exit code."""
        point, times = "", 0
        if self.dice.random() < deadly:
            point = self.dice.choice(sorted(POINTS))
            times = self.dice.randint(1, POINTS[point])
        cuts = self.dice.choice([0, 0, 1, 3])
        started = in_child(work, point, times)
        while True:
            gone, status = os.waitpid(started, os.WNOHANG)
            if gone:
                break
            time.sleep(self.dice.uniform(0.01, 0.1))
            # Most runs that are cut before their first batch only say that they failed.
            if cuts and (self._is_at_work() or self.dice.random() < 0.05):
                cuts -= 1
                self.cuts += 1
                self.lab.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'keikaku patch %'"
                )
        code = os.waitstatus_to_exitcode(status)
        self.deaths += code < 0
        return code

    def _is_at_work(self) -> bool:
        found = self.lab.rows(
            "SELECT sub_state FROM keikaku_patches.execution ORDER BY created_at DESC LIMIT 1"
        )
        return bool(found) and found[0][0] in {"batching", "verifying", "rolling_back"}

    def latest(self) -> Execution:
        """The run."""
        return self.executor.status()[0]

    def until_over(self, work: Callable[[], object]) -> Execution:
        """Do the work, dying less and less, until the run is over."""
        deadline, deadly = time.monotonic() + _PATIENCE_S, 0.5
        while not (now := self.latest()).is_over:
            assert time.monotonic() < deadline, f"it does not end: {now.sub_state}, {now.error_message}"
            self.child(work, deadly)
            deadly /= 2
        return now

    def play(self, url: DatabaseURL, seed: str) -> str:
        """Play the round; returns how it ended."""
        self.lab.run(patch_storm.SCHEMA)
        run = self._beside(url, f"{seed}/1", self._run)
        is_back = run.status == "failed"
        self._judge(is_back, "the run")
        if is_back:
            return self._said(run)
        (one,) = undo.undo_tables(self.lab.connection, run.execution_id)
        log = undo.names_of(run.execution_id).log(one.table)
        assert unexplained(self.lab.connection, log, by_rows=self.by_rows) == []
        back = self._beside(url, f"{seed}/2", lambda: self._roll_back(run))
        self._judge(True, "the rollback of a completed run")
        return f"{self._said(run)}, then {self._said(back)}"

    def _beside(self, url: DatabaseURL, seed: str, work: Callable[[], Execution]) -> Execution:
        editor = in_child(lambda: edit(url, seed))
        try:
            return work()
        finally:
            os.kill(editor, signal.SIGKILL)
            ended(editor)

    def _run(self) -> Execution:
        before = self.executor.status()[:1]
        # A connection that is cut before there is a record leaves nothing: the operator tries again.
        while self.executor.status()[:1] == before:
            self.child(lambda: self.executor.execute(self.patch.name, dry_run=False, again=True), 0.7)
        return self.until_over(self.executor.reap)

    def _roll_back(self, run: Execution) -> Execution:
        deadline, deadly, code = time.monotonic() + _PATIENCE_S, 0.5, -1
        while code not in {0, 21} or not self.latest().is_over:
            assert time.monotonic() < deadline, "the rollback does not end"
            code = self.child(lambda: self.executor.rollback(run.execution_id), deadly)
            deadly /= 2
        return self.latest()

    def _judge(self, is_back: bool, what: str) -> None:
        wrong = problems(self.lab.connection, rolled_back=is_back, by_rows=self.by_rows)
        assert wrong == [], f"after {what}, {len(wrong)} rows: {wrong[:5]}"
        self.executor.reap()
        assert self.lab.leftovers() == [], f"after {what}"

    @staticmethod
    def _said(run: Execution) -> str:
        return run.sub_state if run.status == "failed" else run.status


def test_every_row_is_original_or_patched_once_or_edited_by_the_application(
    campaign: Campaign, server: Server, make_database: MakeDatabase
) -> None:
    """FAULTS 14, 17, 44, 46: kill -9, cut connections and concurrent edits; the undo explains all of it."""
    url = make_database(server)
    with connect(url) as connection:
        lab = Lab(url, connection)
        records.ensure_schema(connection)
        for number in campaign.rounds(100, smoke=2):
            seed = campaign.dice("patch storm", number)
            one = Round(lab, random.Random(seed))
            try:
                outcome = one.play(url, seed)
            except (AssertionError, KeikakuError) as error:
                pytest.fail(f"{campaign.said(number)}: {one.patch.name}: {error}")
            campaign.outcomes[f"{one.patch.name}: {outcome}"] += 1
            campaign.outcomes["killed"] += one.deaths
            campaign.outcomes["cut off"] += one.cuts


def test_the_judge_of_the_storm_sees_a_wrong_row(shared_database: DatabaseURL) -> None:
    """A campaign whose judge is blind proves nothing."""
    with connect(shared_database) as connection:
        lab: Any = Lab(shared_database, connection)
        lab.run(patch_storm.SCHEMA)
        assert problems(connection, rolled_back=True, by_rows=False) == []
        lab.run("UPDATE storm SET qty = qty + 2000 WHERE id = 5; DELETE FROM storm WHERE id = 6")
        assert len(problems(connection, rolled_back=True, by_rows=False)) == 2
        assert len(problems(connection, rolled_back=False, by_rows=False)) == patch_storm.ROWS
