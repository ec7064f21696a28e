"""Acceptance 3: a dry run changes nothing, and says exactly what the real run then does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from keikaku_snapshots.errors import PatchRefusedError
from keikaku_snapshots.patches import dry_run as dry_run_module
from keikaku_snapshots.patches.changes import Delete, Insert, Reject, Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, data_patch
from tests.patch_samples import AddOne, AddOneByRow, Everything, Steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.context import PatchContext
    from tests.patch_lab import Lab

ALL = pytest.mark.parametrize("patch", [AddOne, AddOneByRow, Everything], ids=lambda patch: patch.name)
#: What the server itself counts and measures of a table.
STATE = (
    "SELECT s.n_tup_ins, s.n_tup_upd, s.n_tup_del, s.n_dead_tup, pg_total_relation_size('item'),"
    " (SELECT last_value FROM numbers) FROM pg_stat_user_tables s WHERE relname = 'item'"
)
COUNTS = (
    "processed_records",
    "changed_records",
    "unchanged_records",
    "rejected_records",
    "inconsistent_records",
)


@ALL
def test_03_a_dry_run_changes_nothing_at_all(lab: Lab, patch: Any) -> None:
    """Rows, sequences, sizes and the server's own counters of changed rows are as before."""
    lab.items(500)
    lab.run("CREATE SEQUENCE numbers; ALTER TABLE item ADD number bigint DEFAULT nextval('numbers')")
    lab.run("VACUUM item")
    lab.run("SELECT pg_stat_force_next_flush()")
    before = (lab.checksum(), lab.rows(STATE))

    lab.executor(patch, batch_size=60, inconsistency_limit=0.5).execute(patch.name)

    lab.run("SELECT pg_stat_force_next_flush()")
    assert (lab.checksum(), lab.rows(STATE)) == before
    assert lab.leftovers() == []
    assert lab.value("SELECT count(*) FROM keikaku_patches.undo") == 0


class Bounds(BaseModel):
    """Parameters of the patches below."""

    #: Rows with at most this quantity.
    most: int
    #: What they get.
    text: str
    #: Never shown.
    token: SecretStr = SecretStr("geheim")


@data_patch("by_set")
class BySet(SqlPatch):
    """Quantities are halved, names get a text; some rows stay as they are."""

    table = "public.item"
    where = "qty <= %(most)s"
    set = {"qty": "qty / 2", "name": "coalesce(%(text)s || left(name, 3), name)"}  # noqa: RUF012
    params = Bounds

    def verify_batch(self) -> str:
        """Some violations."""
        return "qty <> 7 AND name NOT LIKE '%%x%%'"


@data_patch("by_row")
class ByRow(RowPatch):
    """The same and more, row by row."""

    table, key = "public.item", ("id",)
    where = "qty <= %(most)s"
    reads, writes = ("qty", "name"), ("qty", "name")
    params = Bounds

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Decide by the quantity."""
        for row in rows:
            kind = row.qty % 7
            if kind < 3:
                yield Update(row, qty=row.qty // 2, name=ctx.params.text + row.name[:3])
            elif kind == 3:
                yield Update(row, name=row.name)
            elif kind == 4:
                yield Delete(row)
            elif kind == 5:
                yield Insert("public.item", id=row.id + 1_000_000, qty=row.qty, name=ctx.params.text)
            else:
                yield Reject(row, "a six")

    def verify_batch(self) -> str:
        """Some violations."""
        return "qty <> 7 AND name NOT LIKE '%%x%%'"


def _difference(before: dict[Any, Any], after: dict[Any, Any]) -> dict[Any, Any]:
    return {
        key: (before.get(key), after.get(key))
        for key in {*before, *after}
        if before.get(key) != after.get(key)
    }


def _told(sample: list[dict[str, Any]], before: dict[Any, Any]) -> dict[Any, Any]:
    """The same difference, as the dry run tells it."""
    told: dict[Any, Any] = {}
    for one in sample:
        if one["kind"] == "insert":
            values = {name: new for name, (_, new) in one["columns"].items()}
            told[values["id"]] = (None, (values["qty"], values["name"]))
            continue
        key = one["key"][0]
        old = before[key]
        columns = one["columns"]
        assert all(
            columns[name][0] == old[place] for place, name in enumerate(("qty", "name")) if name in columns
        )
        new = tuple(
            columns[name][1] if name in columns else old[place] for place, name in enumerate(("qty", "name"))
        )
        told[key] = (old, None if one["kind"] == "delete" else new)
    return told


names = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs"]), max_size=5)


@pytest.mark.parametrize("patch", [BySet, ByRow], ids=lambda patch: patch.name)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), names), min_size=1, max_size=25),
    most=st.integers(0, 40),
    text=names,
    size=st.integers(1, 9),
)
def test_03_the_real_run_does_what_the_dry_run_said(
    newest: Lab, patch: Any, rows: list[tuple[int, str]], most: int, text: str, size: int
) -> None:
    """The same rows and the same differences, whatever is in the table and wherever batches end."""
    newest.run("DROP SCHEMA IF EXISTS keikaku_patches CASCADE; DROP TABLE IF EXISTS item")
    newest.run("CREATE TABLE item (id bigint PRIMARY KEY, qty integer NOT NULL, name text NOT NULL)")
    newest.connection.cursor().executemany(
        "INSERT INTO item VALUES (%s, %s, %s)", [(place * 3, *row) for place, row in enumerate(rows)]
    )
    query = "SELECT id::text, qty::text, name FROM item"
    before = {row[0]: row[1:] for row in newest.rows(query)}
    executor = newest.executor(
        patch, batch_size=size, adaptive=False, require_dry_run=True, inconsistency_limit=5.0
    )
    parameters = {"most": most, "text": text}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dry_run_module, "SAMPLE", 1000)
        told = executor.execute(patch.name, params=parameters)
    assert {row[0]: row[1:] for row in newest.rows(query)} == before
    done = executor.execute(patch.name, False, parameters)

    assert [getattr(told, name) for name in COUNTS] == [getattr(done, name) for name in COUNTS]
    after = {row[0]: row[1:] for row in newest.rows(query)}
    assert _told(told.findings["sample"], before) == _difference(before, after)
    assert told.parameters == {"most": most, "text": text, "token": "***"}
    assert "geheim" not in str(newest.rows("SELECT e::text FROM keikaku_patches.execution e"))


def test_03_a_run_needs_its_dry_run(lab: Lab) -> None:
    """The same source and parameters, not too old, and about as many rows."""
    lab.items(300)
    executor = lab.executor(BySet, require_dry_run=True)
    parameters = {"most": 1000, "text": "a"}

    with pytest.raises(PatchRefusedError, match="needs a dry run first") as caught:
        executor.execute("by_set", dry_run=False, params=parameters)
    assert caught.value.exit_code == 16
    executor.execute("by_set", params=parameters | {"text": "b"})
    with pytest.raises(PatchRefusedError, match="needs a dry run first"):
        executor.execute("by_set", dry_run=False, params=parameters)

    executor.execute("by_set", params=parameters)
    lab.run("INSERT INTO item SELECT i, 1, '' FROM generate_series(1001, 1040) i")
    with pytest.raises(PatchRefusedError, match="saw another number of rows") as other:
        executor.execute("by_set", dry_run=False, params=parameters)
    assert "Then: 300; now: 340" in other.value.found
    lab.run("DELETE FROM item WHERE id > 1020")
    lab.run("UPDATE keikaku_patches.execution SET created_at = created_at - interval '25 hours'")
    with pytest.raises(PatchRefusedError, match="needs a dry run first"):
        executor.execute("by_set", dry_run=False, params=parameters)
    executor.execute("by_set", params=parameters)
    assert executor.execute("by_set", dry_run=False, params=parameters).status == "completed"


def test_03_a_run_may_need_somebody_elses_approval(lab: Lab) -> None:
    """Of this source with these parameters, by another actor."""
    lab.items(10)
    executor = lab.executor(AddOne, require_approval=True)
    with pytest.raises(PatchRefusedError, match="must be approved by somebody else"):
        executor.execute("add_one", dry_run=False, actor="mori")

    approval = (
        "INSERT INTO keikaku_patches.approval (patch_name, source_hash, parameters_hash, actor)"
        " SELECT patch_name, source_hash, parameters_hash, %s FROM keikaku_patches.execution LIMIT 1"
    )
    lab.run(approval, "mori")
    with pytest.raises(PatchRefusedError, match="must be approved by somebody else"):
        executor.execute("add_one", dry_run=False, actor="mori")
    lab.run(approval, "sato")

    assert executor.execute("add_one", dry_run=False, actor="mori").approved_by == "sato"


def test_03_own_sql_has_no_dry_run_but_a_rehearsal(lab: Lab) -> None:
    """It is run and taken back; the run that follows needs it."""
    lab.items(100)
    before = lab.checksum()
    executor = lab.executor(Steps, require_dry_run=True)
    with pytest.raises(PatchRefusedError, match="no dry run of it"):
        executor.execute("steps")
    with pytest.raises(PatchRefusedError, match="needs a rehearsal first"):
        executor.execute("steps", dry_run=False)

    rehearsal = executor.rehearse("steps")

    assert (rehearsal.kind, rehearsal.status, rehearsal.changed_records) == ("rehearsal", "completed", 150)
    assert "sequences" in rehearsal.findings["note"]
    assert lab.checksum() == before
    done = executor.execute("steps", dry_run=False)
    assert (done.changed_records, done.batch_number) == (150, 2)
    assert executor.rollback(done.execution_id).rollback_performed
    assert lab.checksum() == before


@ALL
def test_03_a_rehearsal_takes_its_batches_back(lab: Lab, patch: Any) -> None:
    """It finds what only a write finds, such as a violated constraint."""
    lab.items(200)
    before = lab.checksum()
    executor = lab.executor(patch, batch_size=40, adaptive=False, inconsistency_limit=0.5)

    rehearsal = executor.rehearse(patch.name, batches=2)

    assert (rehearsal.status, rehearsal.processed_records, rehearsal.estimated_records) == (
        "completed",
        80,
        200,
    )
    assert lab.checksum() == before
    assert lab.leftovers() == []
