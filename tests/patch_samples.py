"""Patches on the table of `patch_lab`, simple enough to know what they must do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keikaku_snapshots.patches.changes import Change, Delete, Insert, Reject, Row, Skip, Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, StepPatch, data_patch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.patches.context import PatchContext, StepContext


@data_patch("add_one")
class AddOne(SqlPatch):
    """Add one to each quantity below 1000."""

    table = "public.item"
    where = "qty < 1000"
    set = {"qty": "qty + 1"}  # noqa: RUF012 - a declaration


@data_patch("add_one_by_row")
class AddOneByRow(RowPatch):
    """The same, row by row."""

    table = "public.item"
    where = "qty < 1000"
    reads = ("qty",)
    writes = ("qty",)

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Add one."""
        for row in rows:
            yield Update(row, qty=row.qty + 1)


@data_patch("everything")
class Everything(RowPatch):
    """Change, add, remove, skip and reject rows."""

    table = "public.item"
    reads = ("qty", "name")
    writes = ("qty", "name")

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Decide by the id."""
        for row in rows:
            kind = row.id % 40
            if kind < 10:
                yield Update(row, qty=row.qty + 1, name=row.name)
            elif kind < 20:
                yield Update(row, name=row.name.upper() if kind < 15 else row.name)
            elif kind < 25:
                yield Delete(row)
            elif kind < 30:
                yield Insert("public.item", id=row.id + 1_000_000, qty=0, name="added")
            elif kind == 30:
                yield Reject(row, "odd one")
            elif kind < 35:
                yield Skip(row)


@data_patch("steps")
class Steps(StepPatch):
    """Two steps of own SQL."""

    target_tables = ("public.item",)

    def steps(self, ctx: PatchContext) -> list[tuple[str, object]]:  # type: ignore[override]
        """One after the other."""
        del ctx
        return [("add", self.add), ("rename", self.rename)]

    def add(self, ctx: StepContext) -> None:
        """Add one."""
        ctx.execute("UPDATE public.item SET qty = qty + 1")

    def rename(self, ctx: StepContext) -> None:
        """Write in capitals."""
        ctx.execute("UPDATE public.item SET name = upper(name) WHERE id %% 2 = %(rest)s", {"rest": 0})
