"""What a dataset is: tables with row generators, scales, seeds, and where datasets are found.

A dataset counts in *units* (offices, inventories, customers). The engine cuts the
units of a scale into *shards* of a fixed number, asks every table for the rows of
one shard after another, and copies them table by table in foreign-key order, so
that memory does not depend on the scale::

    def customer_rows(shard: Shard) -> Iterable[Sequence[Value]]:
        count = shard.units * 10                               # ten customers a unit
        random = shard.random("customers")
        ids = shard.uuids("customers", count)
        names = random.choices(NAMES, k=count)                 # column by column, not row by row
        return zip(ids, names, repeat("t"), strict=False)

    dataset = Dataset(
        name="shop", unit="shops",
        tables=(Table(customers, customer_rows, columns=("id", "name", "is_test_data"), rows_per_unit=10),),
        scales=(Scale("small", 10), Scale("medium", 100)),
    )

Rules that make the data byte-identical everywhere:

- draw only from `Shard.random`, which is seeded with ``{seed}/{name}/{shard}``, by
  ``choices``, ``randbytes`` and ``random()`` (the same draws on every Python version);
- never look at a clock: dates hang on `Shard.reference_date`;
- a child table makes the ids of its parents again with `Shard.uuids` or
  `Shard.identities`; nothing is handed from table to table;
- `Dataset.shard_units` is part of the data: another value draws other rows.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from keikaku_snapshots.datasets.ids import draw_ids
from keikaku_snapshots.errors import ParameterTypeError, UnknownDatasetError, UnknownScaleError, UsageError

if TYPE_CHECKING:
    from datetime import date

    import sqlalchemy

#: A value of a row. Text in PostgreSQL's own input form is the fast way ("t", "2026-01-31", '{"a": 1}');
#: None is NULL; other Python values are converted by the column's type (see `copy.text_of`).
Value: TypeAlias = Any
Row: TypeAlias = Sequence[Value]

#: Entry points of this group name datasets of other packages.
ENTRY_POINT_GROUP = "keikaku_snapshots.datasets"

_BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "keikaku": "keikaku_snapshots.datasets.keikaku:dataset",
        "stockrx": "keikaku_snapshots.datasets.stockrx:dataset",
    }
)

# Ids of the shards drawn last: five tables ask for the same ones. 32 shards of
# 5,000 ids are 14 MB, so memory stays flat when there are more shards than that.
_REMEMBERED_SHARDS = 32


@dataclass(frozen=True, slots=True)
class Scale:
    """How much data: a number of units and what belongs to each."""

    #: The name people type, such as ``medium``.
    name: str
    #: Units of the dataset, such as offices.
    units: int
    #: Seconds that generating may take before the performance report calls it a failure.
    limit_s: float | None = None
    #: Numbers for the generators, such as ``{"staffs": 10, "recipients": 100}`` (each per unit).
    per_unit: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("units", self.units)
        object.__setattr__(self, "per_unit", MappingProxyType(dict(self.per_unit)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, and scales travel to worker processes.
        return (Scale, (self.name, self.units, self.limit_s, dict(self.per_unit)))


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of consecutive units: what one call of a row generator fills."""

    #: The number of the shard, from 0.
    index: int
    #: The number of its first unit, from 0.
    first_unit: int
    #: Units in this shard.
    units: int
    #: The scale that is being generated.
    scale: Scale
    #: What every draw depends on.
    seed: int | str
    #: The day that dates hang on.
    reference_date: date
    #: The highest id per table (by its name) that is already taken by rows that stay; 0 for an empty one.
    taken: Mapping[str, int] = field(default_factory=dict)

    def random(self, name: str) -> Random:
        """A generator of random numbers that depends on seed, name and shard only.

        Args:
            name: The table, or ``table.column`` to draw a column independently of the others.
        """
        return Random(f"{self.seed}/{name}/{self.index}")

    def uuids(self, name: str, count: int) -> list[str]:
        """Ids (UUID version 4 in text form) of a table's rows in this shard; the same at every call.

        Args:
            name: The table whose ids they are.
            count: How many rows the table has in this shard.

        Returns:
            A list that is shared between callers; do not change it.
        """
        return _uuids(f"{self.seed}/{name}.id/{self.index}", count)

    def identities(self, name: str, per_unit: int) -> range:
        """Numbers for an integer key: from 1, or after the highest of the rows that stay.

        Args:
            name: The table whose ids they are.
            per_unit: Rows that the table has for each unit.
        """
        start = self.taken.get(name, 0) + self.first_unit * per_unit + 1
        return range(start, start + self.units * per_unit)


@lru_cache(maxsize=_REMEMBERED_SHARDS)
def _uuids(seed: str, count: int) -> list[str]:
    return draw_ids(Random(seed), count)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a dataset and the function that makes its rows."""

    #: The SQLAlchemy table, written by hand, of a mapped class (``Model.__table__``) or reflected.
    table: sqlalchemy.Table
    #: Makes the rows of one shard, each as long as `columns`. A function of a module (not a
    #: lambda) where a process executor is to be used.
    rows: Callable[[Shard], Iterable[Row]]
    #: The columns that the rows fill, in their order. None: every column that is neither
    #: generated nor an identity. Name an identity column to fill it (see `Shard.identities`).
    columns: tuple[str, ...] | None = None
    #: Rows for each unit, for progress; a key of `Scale.per_unit`, a number, or a function of the scale.
    rows_per_unit: int | str | None = None
    #: Rows besides those of the units, for progress, such as one system row in shard 0.
    extra_rows: int = 0

    @property
    def name(self) -> str:
        """The table's name, with its schema where the SQLAlchemy table has one."""
        return str(self.table.fullname)

    def filled_columns(self) -> tuple[str, ...]:
        """The columns that the rows fill.

        Raises:
            UsageError: A name in `columns` is no column of the table, is generated, or stands there twice.
        """
        if self.columns is None:
            return tuple(c.name for c in self.table.columns if c.computed is None and c.identity is None)
        for column in self.columns:
            if column not in self.table.columns:
                known = ", ".join(c.name for c in self.table.columns)
                raise UsageError(f"table {self.name!r} has no column {column!r}", found=f"It has: {known}")
            if self.table.columns[column].computed is not None:
                what = f"column {column!r} of table {self.name!r} is generated by the server"
                raise UsageError(what, hint="Leave it out of columns and rows.")
        if len(set(self.columns)) != len(self.columns):
            raise UsageError(f"columns of table {self.name!r} name a column twice", found=repr(self.columns))
        return self.columns

    def expected_rows(self, scale: Scale) -> int | None:
        """How many rows the scale has in this table, when that is known beforehand."""
        if self.rows_per_unit is None:
            return None
        each = self.rows_per_unit
        number = scale.per_unit.get(each) if isinstance(each, str) else each
        if number is None:  # the row functions have a number of their own
            return None
        return number * scale.units + self.extra_rows


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tables that are generated together."""

    #: The name people type.
    name: str
    #: The tables; any order, they are loaded by foreign keys (equal ones in this order).
    tables: tuple[Table, ...]
    #: The scales that come with it.
    scales: tuple[Scale, ...] = ()
    #: What a unit is called, in the plural: ``offices``. Part of the snapshot's name.
    unit: str = "units"
    #: Units in a shard. Part of the data: another value draws other rows.
    shard_units: int = 50
    #: The boolean column that marks test rows, which cleaning deletes. A table without it is
    #: loaded only while it is empty, or with ``clean_existing=False``.
    marker: str = "is_test_data"

    def __post_init__(self) -> None:
        check_count("shard_units", self.shard_units)
        names = [table.name for table in self.tables]
        if not names:
            raise UsageError(f"dataset {self.name!r} has no tables")
        if len(set(names)) != len(names):
            raise UsageError(f"dataset {self.name!r} has a table twice", found=", ".join(names))

    def shards(
        self, scale: Scale, *, seed: int | str, reference_date: date, taken: Mapping[str, int] | None = None
    ) -> Iterable[Shard]:
        """The shards of a scale, in order."""
        for index, first in enumerate(range(0, scale.units, self.shard_units)):
            units = min(self.shard_units, scale.units - first)
            yield Shard(index, first, units, scale, seed, reference_date, dict(taken or {}))

    def snapshot_name(self, scale: Scale) -> str:
        """What a snapshot of this scale is called: ``medium_100_offices``."""
        return f"{scale.name}_{scale.units}_{self.unit}"

    def scale(self, name: str, *, extra: Iterable[Scale] = ()) -> Scale:
        """The scale of this name; one of `extra` (from a configuration) comes before the dataset's own.

        Raises:
            UnknownScaleError: There is none; the error lists those there are.
        """
        known = {scale.name: scale for scale in (*self.scales, *extra)}
        if name not in known:
            listed = ", ".join(f"{scale.name} ({scale.units:,} {self.unit})" for scale in known.values())
            raise UnknownScaleError(
                f"dataset {self.name!r} has no scale {name!r}", found=f"Known scales: {listed or 'none'}"
            )
        return known[name]


def find_dataset(reference: str | Dataset) -> Dataset:
    """The dataset of this name.

    Args:
        reference: ``keikaku``, ``stockrx``, the name of an entry point of the group
            ``keikaku_snapshots.datasets``, or ``package.module:attribute``;
            a `Dataset` is returned as it is.

    Raises:
        UnknownDatasetError: There is none, or what was named is no dataset.
    """
    if isinstance(reference, Dataset):
        return reference
    if not isinstance(reference, str):
        raise ParameterTypeError(f"dataset must be a Dataset or a name, not {type(reference).__name__}")
    if ":" in reference:
        return _imported(reference)
    if reference in _BUILT_IN:
        return _imported(_BUILT_IN[reference])
    for point in entry_points(group=ENTRY_POINT_GROUP, name=reference):
        return _checked(_loaded(point.load, reference), reference)
    raise UnknownDatasetError(
        f"there is no dataset {reference!r}", found=f"Known datasets: {', '.join(known_datasets())}"
    )


def known_datasets() -> list[str]:
    """The names that `find_dataset` takes, built-in ones first; nothing is imported."""
    others = sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))
    return [*_BUILT_IN, *(name for name in others if name not in _BUILT_IN)]


def get_scale(name: str, dataset: str | Dataset = "keikaku", *, extra: Iterable[Scale] = ()) -> Scale:
    """The scale of this name.

    Args:
        name: ``small``, ``medium``, ``large``, ``xlarge``, or one of `extra`.
        dataset: Whose scale it is.
        extra: Further scales, such as those of a configuration file.

    Raises:
        UnknownScaleError: There is none (a `ValueError`); the error lists those there are.
    """
    return find_dataset(dataset).scale(name, extra=extra)


def check_count(name: str, value: object) -> int:
    """The value, when it is an integer greater than 0.

    Raises:
        ParameterTypeError: It is no integer (True and False are none).
        UsageError: It is 0 or less.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ParameterTypeError(f"{name} must be an integer, not {type(value).__name__}: {value!r}")
    if value <= 0:
        raise UsageError(f"{name} must be greater than 0, not {value!r}")
    return value


def _imported(reference: str) -> Dataset:
    module_name, _, attribute = reference.partition(":")

    def load() -> Any:
        found = _module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found

    return _checked(_loaded(load, reference), reference)


def _loaded(load: Callable[[], Any], reference: str) -> Any:
    try:
        return load()
    except Exception as error:  # the module is the user's own, and may fail in any way
        raise UnknownDatasetError(
            f"dataset {reference!r} cannot be imported", found=f"{type(error).__name__}: {error}"
        ) from error


def _module(name: str) -> Any:
    # The console script does not look into the working directory, `python -m` does;
    # a dataset beside the project's files must be found by both.
    directory = str(Path.cwd())
    if directory in sys.path or "" in sys.path:
        return importlib.import_module(name)
    sys.path.append(directory)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(directory)


def _checked(found: object, reference: str) -> Dataset:
    if not isinstance(found, Dataset):
        raise UnknownDatasetError(f"{reference!r} is no Dataset but {type(found).__name__}")
    return found
