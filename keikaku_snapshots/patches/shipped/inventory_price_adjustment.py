"""Adjust the prices of all active inventories by a percentage."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from keikaku_snapshots.errors import PatchFailedError, PatchRefusedError
from keikaku_snapshots.patches.definition import SqlPatch, data_patch

if TYPE_CHECKING:
    from keikaku_snapshots.patches.context import PatchContext

_PRICES = "SELECT count(*), coalesce(max(price), 0) FROM public.inventories"


class PriceAdjustment(BaseModel):
    """By how much prices change: ``price * (1 + percent / 100) + amount``, at least 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Percent, such as 8 or -2.5.
    percent: Decimal = Field(
        default=Decimal(5),
        gt=-100,
        le=1000,
        max_digits=7,
        decimal_places=3,
        description="8 is 8 percent more",
    )
    #: Yen that are added afterwards.
    amount: Decimal = Field(
        default=Decimal(0),
        ge=-1_000_000,
        le=1_000_000,
        max_digits=9,
        decimal_places=2,
        description="yen, added afterwards",
    )


@data_patch("inventory_price_adjustment")
class InventoryPriceAdjustment(SqlPatch):
    """Adjust the prices of all active inventories by a percentage and an amount, never below 0."""

    table = "public.inventories"
    key = ("id",)
    where = "status = 'active'"
    set = {  # noqa: RUF012 - a declaration
        "price": "greatest(round(price * (1 + %(percent)s::numeric / 100) + %(amount)s::numeric, 2), 0)"
    }
    params = PriceAdjustment

    def validate(self, ctx: PatchContext) -> None:
        """Refuse prices that the column cannot hold, and remember how many rows there are."""
        ((rows, greatest),) = ctx.fetch(_PRICES)
        if greatest * (1 + ctx.params.percent / 100) + ctx.params.amount >= Decimal(10) ** 10:
            raise PatchRefusedError(
                "a price would be too large for the column price",
                found=f"Percent: {ctx.params.percent}; amount: {ctx.params.amount}",
            )
        ctx.remember("rows", rows)

    def verify_batch(self) -> str:
        """No price is negative."""
        return "price >= 0"

    def verify(self, ctx: PatchContext) -> None:
        """No row is lost, and no price is negative."""
        missing, negative = ctx.fetch(
            "SELECT greatest(%(before)s - count(*), 0), count(*) FILTER (WHERE price < 0)"
            " FROM public.inventories",
            {"before": ctx.recall("rows")},
        )[0]
        if missing or negative:
            raise PatchFailedError(
                "the prices are not as they should be",
                found=f"Rows missing: {missing}; negative prices: {negative}",
            )
