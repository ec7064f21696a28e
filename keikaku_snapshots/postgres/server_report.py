"""What a server said of an error, read from the exception of any driver.

psycopg, asyncpg and SQLAlchemy around either of them are understood by the
attributes of their exceptions, so that none of them has to be imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class ServerReport:
    """The fields of a server's error message, whichever driver handed them over."""

    #: SQLSTATE, or empty for an error that did not come from a server.
    sqlstate: str = ""
    #: Primary message, in the server's language.
    message: str = ""
    #: Detail line; may hold row data.
    detail: str = ""
    #: The server's own hint.
    hint: str = ""
    #: Where in a COPY or function it happened; may hold row data.
    context: str = ""
    #: Schema of the table concerned.
    schema: str = ""
    #: Table concerned.
    table: str = ""
    #: Column concerned.
    column: str = ""
    #: Constraint concerned.
    constraint: str = ""

    @property
    def place(self) -> str:
        """The table with its schema, where the server named one."""
        if self.table and self.schema:
            return f"{self.schema}.{self.table}"
        return self.table


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then what SQLAlchemy wrapped in it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        wrapped = getattr(current, "orig", None)
        current = wrapped if isinstance(wrapped, BaseException) else current.__cause__


def report_of(error: BaseException) -> ServerReport:
    """Read what the server said from an exception of any driver.

    Args:
        error: An exception of psycopg or asyncpg, or SQLAlchemy's around one.

    Returns:
        The fields found; an empty report when no server spoke.
    """
    for candidate in chain_of(error):
        diagnostic = getattr(candidate, "diag", None)
        if diagnostic is not None and getattr(diagnostic, "sqlstate", None):
            return _read(diagnostic, "message_primary", "message_detail", "message_hint")
        # asyncpg's own; SQLAlchemy's copy of it has a detail but no names.
        if isinstance(getattr(candidate, "sqlstate", None), str) and hasattr(candidate, "constraint_name"):
            return _read(candidate, "message", "detail", "hint")
    for candidate in chain_of(error):
        state = getattr(candidate, "sqlstate", None)
        if isinstance(state, str):
            return ServerReport(sqlstate=state, message=str(candidate))
    return ServerReport()


def _read(source: object, message: str, detail: str, hint: str) -> ServerReport:
    def text(name: str) -> str:
        value = getattr(source, name, None)
        return value if isinstance(value, str) else ""

    return ServerReport(
        sqlstate=text("sqlstate"),
        message=text(message),
        detail=text(detail),
        hint=text(hint),
        context=text("context"),
        schema=text("schema_name"),
        table=text("table_name"),
        column=text("column_name"),
        constraint=text("constraint_name"),
    )
