"""How a patch is written: a class that declares its changes; the engine writes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, TypeVar

from keikaku_snapshots.errors import PatchDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pydantic import BaseModel

    from keikaku_snapshots.patches.changes import Change, Row
    from keikaku_snapshots.patches.context import PatchContext, StepContext

#: What a patch may say that it knows of: triggers of the user on its tables, which run in each batch, and
#: foreign keys that change rows of tables it has not declared, which no rollback brings back.
Acknowledgement: TypeAlias = Literal["triggers", "cascades"]
#: A step of a `StepPatch`: its name, and what does it.
Step: TypeAlias = "tuple[str, Callable[[StepContext], None]]"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
#: What may follow a percent sign in SQL with parameters.
_PERCENT = re.compile(r"%%|%\([^)]*\)[sbt]")
_PatchClass = TypeVar("_PatchClass", bound="type[Patch]")


class Patch:
    """What every patch has; write a `SqlPatch`, a `RowPatch` or, where neither fits, a `StepPatch`."""

    #: Name, given by `data_patch`.
    name: ClassVar[str] = ""
    #: Version, given by `data_patch`.
    version: ClassVar[int] = 1
    #: Tables that it may change beside its own, as ``schema.table``.
    target_tables: ClassVar[tuple[str, ...]] = ()
    #: A pydantic model of its parameters; None when it has none. Secrets are ``SecretStr``.
    params: ClassVar[type[BaseModel] | None] = None
    #: What of the tables the author has seen and accepts.
    acknowledges: ClassVar[tuple[Acknowledgement, ...]] = ()

    def validate(self, ctx: PatchContext) -> None:
        """Look at the database before anything is changed; raise to refuse.

        Args:
            ctx: Parameters, and queries that only read.
        """

    def verify(self, ctx: PatchContext) -> None:
        """Look at the whole result; raise to have everything taken back.

        Args:
            ctx: Parameters, queries that only read, and what `validate` remembered.
        """

    @property
    def description(self) -> str:
        """First line of the docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    def tables(self) -> tuple[str, ...]:
        """All tables that it may change, its own first."""
        return tuple(dict.fromkeys(self.target_tables))


class _TablePatch(Patch):
    """A patch that walks over the rows of one table in the order of a key."""

    #: The table whose rows it works on, as ``schema.table``.
    table: ClassVar[str] = ""
    #: Columns of a unique index of that table, none of them NULL, in the index's order.
    key: ClassVar[tuple[str, ...]] = ("id",)
    #: Which rows, as SQL with ``%(name)s`` for parameters (a percent sign is ``%%``); empty: all.
    where: ClassVar[str] = ""

    def verify_batch(self) -> str:
        """Return what must hold for each row afterwards, as an SQL condition; empty: nothing.

        Rows for which it does not hold count as inconsistent.
        """
        return ""

    def tables(self) -> tuple[str, ...]:
        """All tables that it may change, its own first."""
        return tuple(dict.fromkeys((self.table, *self.target_tables)))


class SqlPatch(_TablePatch):
    """A set-based patch: columns get the values of SQL expressions."""

    #: SQL expression by column, with ``%(name)s`` for parameters.
    set: ClassVar[Mapping[str, str]] = {}


class RowPatch(_TablePatch):
    """A row-wise patch: Python says what becomes of each row, and the engine writes it."""

    #: Columns that `transform` reads; the key is always there.
    reads: ClassVar[tuple[str, ...]] = ()
    #: Columns that its updates may change.
    writes: ClassVar[tuple[str, ...]] = ()

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Yield what is to happen to the rows of a batch; it is called anew for each try of a batch.

        Args:
            rows: The rows, in the order of the key.
            ctx: Parameters, and queries that only read.

        Returns:
            Changes, written in the order of their first appearance by kind, table and columns.
        """
        raise NotImplementedError


class StepPatch(Patch):
    """The escape hatch: own SQL on declared tables, each step in one transaction.

    It has no dry run, only a rehearsal. `target_tables` names every table that it changes.
    """

    def run(self, ctx: StepContext) -> None:
        """Do all the work in one step.

        Args:
            ctx: Runs its SQL.
        """
        raise NotImplementedError

    def steps(self, ctx: PatchContext) -> Sequence[Step]:
        """Return the steps in their order; a resumed run begins with the first one that was not committed.

        Args:
            ctx: Parameters, and queries that only read.

        Returns:
            Names and what does the step; the same list each time it is asked.
        """
        del ctx
        return [("run", self.run)]


def data_patch(name: str, version: int = 1) -> Callable[[_PatchClass], _PatchClass]:
    """Make a class a patch of this name.

    Args:
        name: Lower-case letters, digits and underscores, at most 63.
        version: Grows with each change that is to run again.

    Returns:
        The decorator.

    Raises:
        PatchDefinitionError: Name, version or a declaration is wrong.
    """
    if not _NAME.fullmatch(name):
        raise PatchDefinitionError(
            "the name of a data patch must be lower-case letters, digits and '_', beginning with a letter",
            found=f"Name: {name!r}",
        )
    if version < 1:
        raise PatchDefinitionError(f"the version of data patch {name!r} must be a number from 1 on")

    def decorate(patch_class: _PatchClass) -> _PatchClass:
        problems = list(_problems(patch_class))
        if problems:
            raise PatchDefinitionError(f"data patch {name!r} is declared wrongly", found="\n".join(problems))
        patch_class.name = name
        patch_class.version = version
        return patch_class

    return decorate


def _problems(patch_class: type[Patch]) -> Iterable[str]:
    """Say in a line each what is wrong with the declaration alone, whatever the database holds."""
    if not issubclass(patch_class, SqlPatch | RowPatch | StepPatch):
        yield "It must be a SqlPatch, a RowPatch or a StepPatch."
        return
    for attribute in ("target_tables", "acknowledges", "key", "reads", "writes"):
        value = getattr(patch_class, attribute, ())
        if not isinstance(value, tuple) or not all(isinstance(part, str) and part for part in value):
            yield f"{attribute} must be a tuple of names, such as ('id',)."
    if issubclass(patch_class, StepPatch):
        if not patch_class.target_tables:
            yield "A StepPatch must name in target_tables every table that it changes."
        return
    if not patch_class.table:
        yield "It names no table."
    if not patch_class.key:
        yield "It names no key."
    if issubclass(patch_class, SqlPatch):
        if not patch_class.set:
            yield "A SqlPatch sets nothing: set is empty."
        changed: Iterable[str] = patch_class.set
    else:
        changed = patch_class.writes
    yield from _percent_problems(patch_class)
    for column in changed:
        if column in patch_class.key:
            yield f"It changes the key column {column!r}; then no row could be followed."


def _percent_problems(patch_class: type[SqlPatch | RowPatch]) -> Iterable[str]:
    yield from lone_percent("where", patch_class.where)
    if issubclass(patch_class, SqlPatch):
        for column, text in patch_class.set.items():
            yield from lone_percent(f"set[{column!r}]", text)


def lone_percent(name: str, text: str) -> Iterable[str]:
    """Say that an SQL text has a percent sign that is no parameter and not doubled.

    Such as in ``LIKE '%test'``: the driver would take ``%t`` for a parameter, and no row would ever match.

    Args:
        name: What the text is.
        text: SQL.
    """
    if "%" in _PERCENT.sub("", text):
        yield f"{name} has a percent sign that is no %(parameter)s; as a character it is written %%."
