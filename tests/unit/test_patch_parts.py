"""Parts of the engine of patches that need no server: sizes, sources, parameters, limits, values."""

from __future__ import annotations

import threading
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from keikaku_snapshots.errors import PatchDefinitionError, PatchFailedError, UsageError
from keikaku_snapshots.patches.changes import Row, Update
from keikaku_snapshots.patches.context import PatchContext
from keikaku_snapshots.patches.definition import SqlPatch, StepPatch, data_patch
from keikaku_snapshots.patches.limits import too_many_wrong
from keikaku_snapshots.patches.parameters import read_parameters
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.sizing import GROWTH_MAX, SIZE_MAX, Sizing
from keikaku_snapshots.patches.source import source_hash
from keikaku_snapshots.patches.watchdog import OverLimitError, Watchdog

if TYPE_CHECKING:
    from pathlib import Path


@given(size=st.integers(1, 60_000), seconds=st.lists(st.floats(1e-6, 100), min_size=1, max_size=20))
def test_a_size_never_jumps(size: int, seconds: list[float]) -> None:
    """At most a fifth more, at least half, never nothing, never endless."""
    sizing = Sizing(size, target_s=0.5)

    for one in seconds:
        following = sizing.after(one)
        assert 1 <= following.size <= max(SIZE_MAX, sizing.size)
        assert following.size <= max(sizing.size * GROWTH_MAX, sizing.size + 1)
        assert following.size >= sizing.size // 2
        sizing = following


@pytest.mark.parametrize("row_s", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("first", [10, 1000, 40_000])
def test_a_size_comes_to_its_target(row_s: float, first: int) -> None:
    """Whatever it begins with: a batch takes half a second in the end."""
    sizing = Sizing(first, target_s=0.5)

    for _ in range(80):
        sizing = sizing.after(sizing.size * row_s)

    assert sizing.size == pytest.approx(min(0.5 / row_s, SIZE_MAX), rel=0.05)


def test_a_size_that_is_not_adaptive_is_what_was_asked_for() -> None:
    """Neither time nor trouble changes it."""
    sizing = Sizing(100, target_s=0.5, adaptive=False)

    assert sizing.after(0.001).after(90.0).halved().size == 100
    assert Sizing(100, target_s=0.5).halved().halved().size == 25
    assert Sizing(1, target_s=0.5).halved().size == 1


@pytest.mark.parametrize(
    ("wrong", "processed", "fails"),
    [(99, 1000, False), (100, 1000, True), (0, 0, False), (1, 1, True), (3, 30, True), (29, 291, False)],
)
def test_a_tenth_is_exactly_a_tenth(wrong: int, processed: int, *, fails: bool) -> None:
    """In binary fractions 0.1 * 30 is more than 3."""
    if fails:
        with pytest.raises(PatchFailedError, match="too many rows"):
            too_many_wrong(wrong, processed, 0.1)
    else:
        too_many_wrong(wrong, processed, 0.1)


PATCH = """
from keikaku_snapshots.patches import SqlPatch, StepPatch, data_patch
LIMIT = {limit}
OTHER = 5
def helper(value):
    return value + {helper}
def unused(value):
    return value + {unused}
@data_patch('mine', version={version})
class Mine(StepPatch):
    target_tables = ('public.item',)
    def run(self, ctx):
        ctx.execute('UPDATE item SET qty = %s', [helper(LIMIT)])
"""


def test_the_hash_of_a_source_changes_with_all_that_the_patch_uses(tmp_path: Path) -> None:
    """Its class, its version, and the helpers and constants of its module; nothing else of the module."""

    def hashed(**changes: int) -> str:
        values = {"limit": 1, "helper": 1, "unused": 1, "version": 1} | changes
        file = tmp_path / f"patch_{'_'.join(f'{name}{value}' for name, value in values.items())}.py"
        file.write_text(PATCH.format(**values), encoding="utf-8")
        registry = DataPatchRegistry(modules=[file], shipped=False, entry_points=False)
        return source_hash(registry.find("mine"))

    original = hashed()
    assert hashed() == original
    assert hashed(unused=2) == original
    assert len({original, hashed(helper=2), hashed(limit=2), hashed(version=2)}) == 4


def test_a_declared_attribute_is_part_of_the_source() -> None:
    """Also when it was set from outside."""

    @data_patch("first")
    class First(SqlPatch):
        table = "public.item"
        set = {"qty": "1"}  # noqa: RUF012

    before = source_hash(First)
    First.where = "id > 5"

    assert source_hash(First) != before


class Secretive(BaseModel):
    """Parameters with a secret."""

    day: date = date(2026, 1, 1)
    factor: Decimal
    token: SecretStr


@data_patch("secretive")
class SecretivePatch(StepPatch):
    """A patch with parameters."""

    target_tables = ("public.item",)
    params = Secretive


def test_parameters_are_converted_and_secrets_masked() -> None:
    """Texts of the command line become values; what is stored and hashed has no secret."""
    first = read_parameters(SecretivePatch(), {"factor": "1.50", "token": "s3cret", "day": "2026-02-03"})
    second = read_parameters(SecretivePatch(), {"factor": "1.50", "token": "other", "day": date(2026, 2, 3)})

    assert first.values == {"day": date(2026, 2, 3), "factor": Decimal("1.50"), "token": "s3cret"}
    assert first.shown == {"day": "2026-02-03", "factor": "1.50", "token": "***"}
    assert first.hash == second.hash
    assert "s3cret" not in repr(first)


def test_all_wrong_parameters_are_told_and_none_is_quoted() -> None:
    """A wrong value may be a secret in the wrong place."""
    with pytest.raises(UsageError) as caught:
        read_parameters(SecretivePatch(), {"factor": "s3cret", "colour": 1})

    lines = caught.value.found.splitlines()
    assert lines[0] == "parameters.colour: unknown"
    assert {line.partition(":")[0] for line in lines[1:]} == {"parameters.factor", "parameters.token"}
    assert "s3cret" not in str(caught.value)


def test_a_patch_without_parameters_takes_none() -> None:
    """A mistyped patch name must not swallow parameters."""

    @data_patch("bare")
    class Bare(StepPatch):
        target_tables = ("public.item",)

    with pytest.raises(UsageError, match="takes no parameters"):
        read_parameters(Bare(), {"a": 1})


def test_what_validate_remembers_verify_recalls_with_its_type() -> None:
    """Over JSON and back; what has no JSON is refused where it is remembered."""
    context = PatchContext(
        execution_id=UUID(int=1),
        params=None,
        actor="",
        now=datetime.now(UTC),
        dry_run=False,
        reader=lambda: (_ for _ in ()).throw(AssertionError),
    )
    values: dict[str, Any] = {
        "sum": Decimal("1.10"),
        "day": date(2026, 1, 2),
        "time": datetime(2026, 1, 2, 3, tzinfo=UTC),
        "id": UUID(int=5),
        "many": [1, "a", None],
        "like": {"decimal": "not one", "more": 1},
    }

    for name, value in values.items():
        context.remember(name, value)
        assert context.recall(name) == value
        assert type(context.recall(name)) is type(value)
    with pytest.raises(TypeError):
        context.remember("set", {1, 2})


def test_a_row_cannot_be_changed_and_does_not_show_its_values() -> None:
    """Its columns are read as attributes and keys."""
    row = Row({"id": 1, "name": "山田花子", "as_dict": 3})

    assert (row.id, row["name"], row["as_dict"], list(row)) == (1, "山田花子", 3, ["id", "name", "as_dict"])
    assert "山田" not in repr(row) + repr(Update(row, name="山田"))
    with pytest.raises(AttributeError, match="yield Update"):
        row.name = "x"
    with pytest.raises(AttributeError, match="it was read with id, name"):
        _ = row.age


class _Cancelled:
    """Stands for a connection with a statement under way."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen = threading.Event()

    def cancel(self) -> None:
        """Count."""
        self.calls += 1
        self.seen.set()


def test_the_watchdog_cancels_what_is_over_its_memory() -> None:
    """It goes on cancelling, since the first time may have been between two statements; then no more."""
    memory = [10]
    connection: Any = _Cancelled()
    with Watchdog(
        memory_limit_bytes=100, time_limit_s=None, every_s=0.005, memory=lambda: memory[0]
    ) as watch:
        with watch.working(connection):
            memory[0] = 85
            watch.check()
            memory[0] = 150
            assert connection.seen.wait(10)
            with pytest.raises(OverLimitError):
                watch.check()
        calls = connection.calls
        time.sleep(0.03)
        assert connection.calls == calls
    assert (watch.cause, watch.peak_bytes, watch.news()) == ("memory", 150, ["memory_high"])


def test_only_time_of_work_counts() -> None:
    """What other processes have worked before is added, pauses are not."""
    connection: Any = _Cancelled()
    with Watchdog(
        memory_limit_bytes=100,
        time_limit_s=60,
        active_s=58.0,
        estimate_s=29.5,
        every_s=0.005,
        memory=lambda: 1,
    ) as watch:
        with watch.working(connection):
            pass
        paused_at = watch.active_s
        time.sleep(0.05)
        assert watch.active_s == paused_at < 59
        assert watch.news() == []
        watch.time_limit_s = 58.0
        with watch.working(connection):
            assert connection.seen.wait(10)
    assert watch.cause == "time"


@pytest.mark.parametrize("name", ["", "Upper", "1st", "with space", "a" * 64, "dash-ed"])
def test_a_name_is_what_a_command_line_and_a_file_can_hold(name: str) -> None:
    """Lower-case letters, digits and underscores."""
    with pytest.raises(PatchDefinitionError):
        data_patch(name)


def test_a_module_without_patches_and_one_that_fails_are_told(tmp_path: Path) -> None:
    """With the file and what went wrong, in one line."""
    empty, broken = tmp_path / "empty.py", tmp_path / "broken.py"
    empty.write_text("x = 1\n")
    broken.write_text("import nothing_of_this_name\n")

    with pytest.raises(PatchDefinitionError, match="defines no data patch"):
        DataPatchRegistry(modules=[empty])
    with pytest.raises(PatchDefinitionError) as caught:
        DataPatchRegistry(modules=[broken])
    assert caught.value.found == "ModuleNotFoundError: No module named 'nothing_of_this_name'"
    with pytest.raises(PatchDefinitionError, match="cannot be loaded"):
        DataPatchRegistry(modules=[tmp_path / "missing.py"])
