"""Mark batches that have expired, and leave a line in the inventory log for each."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from keikaku_snapshots.errors import PatchFailedError
from keikaku_snapshots.patches.changes import Change, Insert, Row, Update
from keikaku_snapshots.patches.definition import RowPatch, data_patch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.patches.context import PatchContext

_EXPIRED = "status = 'active' AND expires_on < %(before)s"


def _today_in_tokyo() -> date:
    return datetime.now(ZoneInfo("Asia/Tokyo")).date()


class ExpiryDate(BaseModel):
    """Up to which day batches have expired."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Batches whose last day is before this one have expired; today in Japan by default.
    before: date = Field(default_factory=_today_in_tokyo, description="the first day that is good")


@data_patch("batch_expiry_update")
class BatchExpiryUpdate(RowPatch):
    """Mark active batches as expired when their day has passed, with a line in the inventory log."""

    table = "public.batches"
    key = ("id",)
    where = _EXPIRED
    reads = ("inventory_id", "lot_code", "quantity", "status")
    writes = ("status",)
    target_tables = ("public.inventory_logs",)
    params = ExpiryDate

    def validate(self, ctx: PatchContext) -> None:
        """Remember how many lines of the log speak of expiry."""
        ctx.remember("logged", ctx.value(_LOGGED))

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Expire each batch; what is on the shelf stays there until it is disposed of."""
        del ctx
        for row in rows:
            yield Update(row, status="expired")
            yield Insert(
                "public.inventory_logs",
                inventory_id=row.inventory_id,
                batch_id=row.id,
                delta=0,
                operation="expire",
                previous_quantity=row.quantity,
                current_quantity=row.quantity,
                note=f"Lot {row.lot_code} has expired",
            )

    def verify_batch(self) -> str:
        """The batch is not for sale any more."""
        return "status <> 'active'"

    def verify(self, ctx: PatchContext) -> None:
        """No line of the log is lost; batches that were added meanwhile are for the next run."""
        if ctx.value(_LOGGED) < ctx.recall("logged"):
            raise PatchFailedError("lines of the inventory log are missing")


_LOGGED = "SELECT count(*) FROM public.inventory_logs WHERE operation = 'expire'"
