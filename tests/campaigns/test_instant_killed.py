"""All that is instant, at once: builders, swappers, spares, rewinders and pytest runs, killed at random.

A round goes on where the last one ended, with the templates and spares that it left.
"""

from __future__ import annotations

import random
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import KeikakuError
from tests.campaigns.instant_world import REWOUND, SHOPS, SNAPSHOTS, World

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from tests.campaigns.conftest import Campaign
    from tests.campaigns.instant_world import Participant
    from tests.conftest import FreshServer

#: How often each kind comes; ``rebuild`` clears the templates first.
_KINDS = {"restore": 8, "rebuild": 3, "rewind": 5, "arm": 2, "plugin": 2, "clear": 1}
#: In which a fault comes; nobody needs longer but pytest.
_SPAN_S = 0.6
#: What a session that is lost, or a server that is starting again, may be answered with.
_LOST = frozenset({
    "ConnectError", "RestoreFailedError", "OutcomeUnknownError", "DatabaseInUseError", "RewindFailedError",
    "KeikakuError", "OperationTimeoutError", "SnapshotNotFoundError",
})  # fmt: skip
_FAILURES = (AssertionError, KeikakuError, psycopg.Error, OSError, subprocess.SubprocessError)


@dataclass
class Round:
    """One round: who takes part, what hits them, what must hold afterwards."""

    world: World
    dice: random.Random
    #: What was done, for a failure's text.
    story: list[str] = field(default_factory=list)
    #: True when a server process was killed, which ends all sessions.
    crashed: bool = False
    #: True when any session was hit.
    disturbed: bool = False

    def play(self, outcomes: Counter[str]) -> None:
        """Play it."""
        world = self.world
        before = {name: world.rows(name) for name in SHOPS}
        taking_part = [self._start(kind) for kind in self._kinds()]
        try:
            self._hit(taking_part, outcomes)
        finally:
            world.wait(taking_part)
            self.story += [f"{one} {one.text[:600]}" for one in taking_part]
        world.wait_for_server()
        for one in taking_part:
            self._check_answer(one)
            outcomes[f"{one.given['what']} {one.ending}"] += 1
        self._check_files()
        for name in SHOPS:
            self._check_shop(name, before[name], taking_part)
        world.rewind()
        assert world.rows(REWOUND) == world.states[REWOUND], "the rewind did not bring everything back"
        self._heal(with_suite=any(one.process for one in taking_part))

    def _kinds(self) -> list[str]:
        chosen = self.dice.choices(list(_KINDS), list(_KINDS.values()), k=self.dice.choice([2, 3, 3, 4]))
        if "arm" in chosen:  # while it makes its checkpoint nobody else may write
            chosen = [kind for kind in chosen if kind not in {"arm", "rewind"}] + ["arm"]
        return chosen

    def _start(self, kind: str) -> Participant:
        dice = self.dice
        if kind == "plugin":
            return self.world.start(what="plugin")
        if kind in {"rewind", "arm"}:
            return self.world.start(what=kind, url=REWOUND, seed=dice.random())
        given: dict[str, Any] = {"what": "clear", "url": dice.choice(SHOPS)}
        if kind != "clear":
            given |= {
                "what": "restore",
                "name": dice.choice(list(SNAPSHOTS)),
                "strategy": dice.choice(["template", "template", "auto", "swap"]),
                "spare": dice.choice([0, 1, 1, 2]),
                "clear": kind == "rebuild",
            }
        return self.world.start(**given)

    def _hit(self, taking_part: list[Participant], outcomes: Counter[str]) -> None:
        """At random moments: processes are killed, sessions terminated, server processes killed."""
        dice = self.dice
        events: list[tuple[float, str, Participant | None]] = []
        for one in taking_part:
            if dice.random() < 0.6:
                span = _SPAN_S * (4 if one.process else 1)
                events.append((dice.uniform(0, span), "kill", one))
        for _ in range(dice.choice([0, 1, 1, 2])):
            how = dice.choice(["terminate", "terminate", "crash"])
            events.append((dice.uniform(0, _SPAN_S), how, None))
        begun = time.monotonic()
        for moment, how, victim in sorted(events, key=lambda event: event[:2]):
            time.sleep(max(0, moment - (time.monotonic() - begun)))  # any moment is as good as another
            if victim is not None:
                self.world.kill(victim)
                continue
            hit = self.world.hit_a_session(dice, hard=how == "crash")
            if hit:
                self.disturbed = True
                self.crashed |= how == "crash"
                self.story.append(f"{how} {hit} at {moment:.3f} s")
                outcomes[f"{how} {hit}"] += 1

    def _check_answer(self, one: Participant) -> None:
        """Done, dead, or an error that fits: without a lost session nobody fails."""
        if one.code == 0 or (one.killed and one.code == -9):
            return
        assert self.disturbed, f"nobody disturbed {one}: {one.text}"
        if one.process is None:
            kind = one.text.partition(":")[0]
            ours = kind in _LOST or "the lock of database" in one.text
            # A test's own session is psycopg's.
            assert ours or "psycopg.OperationalError" in one.text or "AdminShutdown" in one.text, one
        else:
            assert one.code == 1, f"{one}: {one.text}"

    def _check_files(self) -> None:
        assert self.world.damaged_files() == []
        assert self.crashed or self.world.unmarked() == [], "nobody will drop what has no mark"

    def _check_shop(self, name: str, before: str, taking_part: list[Participant]) -> None:
        """As it was, or what somebody restored; and which of the two, where an answer was given."""
        now = self.world.rows(name)
        restored = [one for one in taking_part if one.given["what"] == "restore" and one.given["url"] == name]
        states = self.world.states
        assert now in {before, *(states[one.given["name"]] for one in restored)}, f"{name} is something else"
        if len(restored) == 1:
            (one,) = restored
            if one.code == 0:
                assert now == states[one.given["name"]], "it said that it was done"
            elif one.code is not None and one.code > 0 and not one.text.startswith("OutcomeUnknown"):
                assert now == before, "it said that nothing was changed"

    def _heal(self, *, with_suite: bool) -> None:
        """The next commands find no obstacle, use what is whole and drop what is not."""
        world = self.world
        for name in SHOPS:
            snapshot = self.dice.choice(list(SNAPSHOTS))
            with world.manager(name) as manager:
                restored = manager.restore_snapshot(snapshot, strategy=self.dice.choice(["template", "auto"]))
            self.story.append(f"then {name} {snapshot}: {restored.reason}")
            assert restored.strategy in {"template", "swap"}
            assert world.rows(name) == world.states[snapshot], f"{snapshot} does not come back"
        if with_suite:
            code, words = world.run_suite()
            assert code == 0, f"the next run of pytest: {words}"
        assert world.left("new", "old", "test") == []
        if self.crashed:
            world.drop_unmarked()


def test_whoever_is_killed_neither_database_nor_snapshot_is_lost(
    fresh_server: FreshServer, campaign: Campaign, tmp_path: Path
) -> None:
    """FAULTS 50, 58, 62, PEERS 1, 17: kill -9 of clients and server processes, several at work at once."""
    failed = []
    with World(fresh_server(synchronous_commit="on"), tmp_path) as world:
        for number in campaign.rounds(100, smoke=2):
            one = Round(world, random.Random(campaign.dice("instant", number)))
            try:
                one.play(campaign.outcomes)
            except _FAILURES as error:
                story = "\n  ".join(one.story)
                failed.append(f"{campaign.said(number)}:\n  {story}\n{type(error).__name__}: {error}")
                world.begin_anew()
    assert not failed, "\n\n".join(failed)
