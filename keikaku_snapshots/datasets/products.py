"""What a pharmacy has on its shelves: names and prices of packages, drawn from pools.

The pools are tab-separated files in ``data/``. Medicines have their generic
names, which belong to nobody; makers and prices are made up. Nothing here is
random: callers draw from the pools with their own seeded generator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import accumulate

from keikaku_snapshots.datasets.pools import read_pool

#: What a product has in place of a strength or size when there is only one.
_NO_STRENGTH = "-"
#: Each further strength costs so many hundredths of the first one's price more.
_STRENGTH_STEP_PERCENT = 25


@dataclass(frozen=True, slots=True)
class Product:
    """One strength of a product in one package, of any maker."""

    #: What stands before the maker: ``アムロジピン錠5mg``.
    name: str
    #: What stands after the maker: ``100錠``.
    package: str
    #: The usual price of the package in sen, hundredths of a yen.
    price_sen: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Products to draw from: ``random.choices(it.products, cum_weights=it.cumulative_weights)``."""

    #: Every strength in every package, in the order of the file.
    products: tuple[Product, ...]
    #: Running totals of the weights, one for each product.
    cumulative_weights: tuple[int, ...]


@cache
def makers() -> tuple[str, ...]:
    """Makers, as they stand on a package."""
    return tuple(maker for (maker,) in read_pool("makers.tsv"))


@cache
def catalogue() -> Catalogue:
    """All products; those of a line of the file share its weight as often as they are."""
    products: list[Product] = []
    weights: list[int] = []
    for name, strengths, packages, yen, weight in read_pool("products.tsv"):
        for step, strength in enumerate(strengths.split(",")):
            sen = Decimal(yen) * (100 + _STRENGTH_STEP_PERCENT * step)
            for package in packages.split(","):
                full_name = name if strength == _NO_STRENGTH else f"{name}{strength}"
                products.append(Product(full_name, package, int(sen * _pieces(package))))
                weights.append(int(weight))
    return Catalogue(tuple(products), tuple(accumulate(weights)))


def _pieces(package: str) -> int:
    found = re.match(r"\d+", package)
    if found is None:
        raise ValueError(f"a package begins with the number of its pieces, not {package!r}")
    return int(found.group())
