"""Rounds of random faults: what was listed stays whole, and the database is one thing or the other."""

from __future__ import annotations

import random
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.campaigns import actions, faults
from tests.campaigns.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.campaigns.actions import Action
    from tests.campaigns.conftest import Campaign
    from tests.campaigns.faults import Ended, Fault, Measure
    from tests.campaigns.world import Key
    from tests.conftest import FreshServer


@pytest.fixture
def world(fresh_server: FreshServer, tmp_path: Path) -> Iterator[World]:
    """A server that may be killed; COMMIT means what it says, as it does where people work."""
    built = World(fresh_server(synchronous_commit="on", wal_level="replica"), tmp_path)
    try:
        built.build()
        yield built
    finally:
        built.close()


#: About what an action takes, for the short run.
GUESS = faults.Measure(seconds=0.4, operations=12, sent=60, answered=80)


class Unmeasured(Exception):  # noqa: N818 - asks for a measure, then the round begins again
    """It is not known how long an action of this measure is."""


def _measured(world: World, wanted: str) -> Measure:
    """Do an action of this measure once without a fault."""
    world.reset(0)
    dice = random.Random(0)
    while (action := actions.choose(world, dice)).measure != wanted:
        pass
    found, ended = faults.measure(world, action)
    assert ended.code == 0, f"unbroken: {action}: {ended}"
    return found


@dataclass
class Round:
    """One round: a few actions with faults, what must hold after each, and the healing."""

    world: World
    dice: random.Random
    #: What was done and how it ended, for a failure's text.
    story: list[str] = field(default_factory=list)
    listed: dict[Key, str] = field(default_factory=dict)
    state: str = ""
    #: What the database was when a snapshot was made of it.
    states: dict[Key, str] = field(default_factory=dict)

    def play(self, measures: dict[str, Measure], outcomes: Counter[str]) -> None:
        """Play it."""
        chosen = [self._fault() for _ in range(self.dice.choice([1, 1, 1, 2, 3]))]
        self.world.reset(self.dice.getrandbits(32), small=any(one.small for one in chosen))
        self.listed, self.state = dict(self.world.listed), self.world.live
        self.states = dict(self.world.states)
        for fault in chosen:
            action = actions.choose(self.world, self.dice)
            self.story.append(f"{fault.name}: {action}")
            try:
                measured = measures[action.measure]
            except KeyError:
                raise Unmeasured(action.measure) from None
            ended = fault.run(self.world, action, measured, self.dice)
            self.story[-1] += f" -> {ended.code} {ended.error} {ended.text.strip()[:1000]}"
            outcomes[f"{fault.name} {action.kind} {ended.error or ended.code}"] += 1
            self._check_answer(fault, action, ended)
            self._check_files(action, ended)
            self._check_database(action, ended)
        self._heal()

    def _fault(self) -> Fault:
        weights = [fault.weight for fault in faults.FAULTS]
        return self.dice.choices(faults.FAULTS, weights)[0]

    def _check_answer(self, fault: Fault, action: Action, ended: Ended) -> None:
        """Every end is done, dead, or an error that fits."""
        if ended.code < 0:
            assert ended.code == -9
            assert fault.name.startswith("kill_")
            return
        if ended.code == 0:
            return
        allowed = set(fault.errors)
        if fault.may_be_unknown and action.kind == "restore":
            allowed.add("OutcomeUnknownError")
        if action.kind == "rename":
            allowed.add("SnapshotExistsError")  # one that was killed before left copies of both names
        assert ended.error in allowed, f"{fault.name} may end in {sorted(allowed)}"

    def _check_files(self, action: Action, ended: Ended) -> None:
        """What was listed is listed with the same bytes, but for what the action was to change."""
        now, before = self.world.now_listed(), self.listed
        for key, data in before.items():
            renamed = (actions.NEW_NAME if key[0] != actions.NEW_NAME else "app", key[1])
            if key not in action.touched:
                assert now.get(key) == data, f"{key} is lost or changed"
            elif action.kind == "rename":
                assert data in {now.get(key), now.get(renamed)}, f"{key} is under neither name"
            elif action.kind == "overwrite":
                assert key in now, f"{key} is lost"
        new = {key for key in now if now[key] != before.get(key)}
        done = ended.code == 0
        if action.kind in {"create", "overwrite"}:
            assert len(new) == 1 if done else len(new) <= 1
            # An error means that nothing was published; of a killed process nobody knows.
            assert not (new and ended.code > 0), "an error was reported and yet it is there"
            for key in new:
                self.world.manager().verify_snapshot(*key)
                self.states.pop(key, None)
                if key[0] != "rows":
                    self.states[key] = self.state
        elif action.kind == "rename":
            self.states |= {key: self.states[old] for key in new for old in before
                            if old in self.states and before[old] == now[key]}  # fmt: skip
            assert all(now[key] in before.values() for key in new)
            assert not done or not action.touched & set(now)
        else:
            assert new == set()
        if done and action.kind == "delete":
            assert not action.touched & set(now)
        self.listed = now

    def _check_database(self, action: Action, ended: Ended) -> None:
        """As before, or the snapshot; and which of the two, where an answer was given."""
        now = self.world.state()
        if action.kind != "restore":
            assert now == self.state, "the database has changed"
            return
        key = (action.arguments["name"], action.arguments["version"])
        after = self.states.get(key)
        if after is None:
            # Of test rows alone the state is not known beforehand; but again they change nothing.
            after = now
            if now != self.state:
                again = faults.start(self.world, action).wait()
                assert again.code == 0, again
                after = self.world.state()
        assert now in {self.state, after}, "the database is neither as before nor the snapshot"
        if ended.code == 0:
            assert now == after, "it said that it was done"
        elif ended.code > 0 and ended.error != "OutcomeUnknownError":
            assert now == self.state, "it said that nothing was changed"
        self.state = now

    def _heal(self) -> None:
        """The next commands find no obstacle and leave nothing behind."""
        world = self.world
        SnapshotStore(world.directory, grace_s=0).sweep()
        assert world.now_listed() == self.listed, "the sweep has changed what is listed"
        assert world.unknown_files() == []
        manager = world.manager()
        done = manager.create_snapshot("healed")
        self.listed[done.name, done.version] = world.now_listed()[done.name, done.version]
        proven = sorted(key for key in self.listed if key in self.states)
        fresh = [key for key in proven if key not in world.listed] or proven
        key = self.dice.choice(fresh)
        # What a killed restore has left as a template is complete, or it is not there.
        strategy = self.dice.choice(["swap", "template"])
        manager.restore_snapshot(*key, strategy=strategy, on_schema_mismatch="ignore")
        assert world.state() == self.states[key], f"{key} does not come back"
        assert world.wait_for_no_siblings() == []
        assert world.now_listed() == self.listed


def _play(one: Round, measures: dict[str, Measure], outcomes: Counter[str]) -> None:
    """Play a round; what it needs to know of its actions is measured first."""
    dice = one.dice.getstate()
    while True:
        try:
            one.play(measures, outcomes)
        except Unmeasured as needed:
            measures[str(needed)] = _measured(one.world, str(needed))
            one.dice.setstate(dice)
            one.story.clear()
        else:
            return


def test_rounds_of_faults_lose_nothing_that_was_listed(world: World, campaign: Campaign) -> None:
    """FAULTS 2, 9, 17, 43, 44, 49-53; issue 3: deaths, full disks and lost connections at random moments."""
    measures: dict[str, Measure] = defaultdict(lambda: GUESS) if campaign.is_smoke else {}
    failed = []
    for number in campaign.rounds(200, smoke=3):
        one = Round(world, random.Random(campaign.dice(number)))
        try:
            _play(one, measures, campaign.outcomes)
        except (AssertionError, KeikakuError, psycopg.Error, OSError, subprocess.SubprocessError) as error:
            story = "\n  ".join(one.story)
            failed.append(f"{campaign.said(number)}:\n  {story}\n{error}")
    assert not failed, "\n\n".join(failed)
