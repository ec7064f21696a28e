"""Acceptance 35: whatever a run and an application do in turn, a rollback keeps what the latter did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keikaku_snapshots.patches import records, undo, undo_clean
from keikaku_snapshots.patches.rollback import roll_back

if TYPE_CHECKING:
    from tests.patch_lab import Lab

IDS = range(1, 7)


class Change(NamedTuple):
    """One change of one row."""

    #: The run, or the application.
    by_run: bool
    #: True when the run's transaction ends after it.
    ends: bool
    #: ``a`` or ``b`` for an update of that column, ``+`` or ``-``.
    what: str
    #: The row.
    number: int


CHANGES = st.lists(
    st.builds(
        Change,
        st.booleans(),
        st.booleans(),
        st.sampled_from(["a", "b", "a", "b", "+", "-"]),
        st.sampled_from(IDS),
    ),
    min_size=1,
    max_size=24,
)


class Stopped(Exception):  # noqa: N818 - it is no error of the code under test
    """The worker of a rollback dies here."""


@dataclass
class World:
    """The rows as they are, and as they would be without the run."""

    now: dict[int, dict[str, int]]
    alone: dict[int, dict[str, int]]
    #: Rows of which both could be said: the application worked on what only the run had made.
    unclear: set[int] = field(default_factory=set)
    #: Rows of the application where the run had removed one.
    put_anew: set[int] = field(default_factory=set)

    def apply(self, change: Change, value: int) -> str:
        """Note a change; returns the statement, or nothing when it has no effect."""
        number, here = change.number, change.number in self.now
        if change.what == "+":
            if here:
                return ""
            self.now[number] = {"a": value, "b": value}
            if not change.by_run:
                if number in self.alone:
                    self.put_anew.add(number)
                self.alone[number] = {"a": value, "b": value}
            return f"INSERT INTO w VALUES ({number}, {value}, {value})"
        if not here:
            return ""
        if change.what == "-":
            del self.now[number]
            if not change.by_run:
                if number in self.put_anew:
                    self.unclear.add(number)
                self.alone.pop(number, None)
            return f"DELETE FROM w WHERE id = {number}"
        self.now[number][change.what] = value
        if not change.by_run:
            if number in self.alone:
                self.alone[number][change.what] = value
            else:
                self.unclear.add(number)
        return f"UPDATE w SET {change.what} = {value} WHERE id = {number}"


def _play(lab: Lab, changes: list[Change], size: int, stops: list[int]) -> None:
    lab.run("TRUNCATE w; INSERT INTO w SELECT i, i, i FROM generate_series(1, 3) i")
    start = {number: {"a": number, "b": number} for number in (1, 2, 3)}
    world = World({n: dict(row) for n, row in start.items()}, {n: dict(row) for n, row in start.items()})
    execution_id = uuid4()
    records.insert(
        lab.connection,
        {
            "execution_id": execution_id, "patch_name": "any", "kind": "run", "status": "running",
            "sub_state": "batching", "dry_run": False, "actor": "test", "batch_number": 1,
        },
    )  # fmt: skip
    undo.arm(lab.connection, execution_id, ["public.w"])
    waiting: list[str] = []

    def commit() -> None:
        if waiting:
            with lab.connection.transaction():
                lab.connection.execute(undo.switch(execution_id))
                for statement in waiting:
                    lab.run(statement)
            waiting.clear()

    for value, change in enumerate(changes, 100):
        if not change.by_run:
            commit()  # the application would wait for the row
        statement = world.apply(change, value)
        if not statement:
            continue
        if change.by_run:
            waiting.append(statement)
            if change.ends:
                commit()
        else:
            lab.run(statement)
    commit()
    _roll_back(lab, execution_id, size, stops)
    _judge(lab, world, execution_id)
    undo_clean.drop(lab.connection, execution_id)


def _roll_back(lab: Lab, execution_id: UUID, size: int, stops: list[int]) -> None:
    for stop in [*stops, 10_000]:
        left = [stop]

        def before_batch(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped

        try:
            roll_back(
                lab.connection,
                records.find(lab.connection, execution_id),
                batch_size=size,
                before_batch=before_batch,
            )
        except Stopped:
            continue


def _judge(lab: Lab, world: World, execution_id: UUID) -> None:
    found = {number: {"a": a, "b": b} for number, a, b in lab.rows("SELECT id, a, b FROM w")}
    for number in IDS:
        if number not in world.unclear:
            assert found.get(number) == world.alone.get(number), f"row {number}"
    again = lab.checksum("public.w")
    roll_back(lab.connection, records.find(lab.connection, execution_id))
    assert lab.checksum("public.w") == again
    conflicts: list[Any] = lab.rows(
        "SELECT key[1]::int FROM keikaku_patches.conflict WHERE execution_id = %s", execution_id
    )
    touched = {number for number in IDS if world.alone.get(number) != _original(number)} | world.unclear
    assert {row[0] for row in conflicts} <= touched, "a conflict without an edit"


def _original(number: int) -> dict[str, int] | None:
    return {"a": number, "b": number} if number <= 3 else None


@pytest.fixture
def prepared(newest: Lab) -> Lab:
    """The table, the records, and nothing in them."""
    newest.run("CREATE TABLE public.w (id int PRIMARY KEY, a int, b int)")
    records.ensure_schema(newest.connection)
    return newest


@pytest.mark.parametrize("examples", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_35_a_rollback_gives_what_the_application_alone_made(prepared: Lab, examples: int) -> None:
    """Random changes of both in turn, in transactions of any length, the rollback interrupted anywhere."""

    @settings(
        max_examples=examples,
        derandomize=examples < 100,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(CHANGES, st.integers(1, 4), st.lists(st.integers(0, 8), max_size=3))
    def play(changes: list[Change], size: int, stops: list[int]) -> None:
        _play(prepared, changes, size, stops)

    play()
