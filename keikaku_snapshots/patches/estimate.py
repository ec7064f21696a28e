"""How many rows a run will work on and how long it should take, from the best that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg import sql

from keikaku_snapshots.patches import records

if TYPE_CHECKING:
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.keyset import Keyset
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.postgres.connect import Connection

#: Rows a second when nothing is known: 10,000 a minute.
ROWS_PER_S: Final = 10_000 / 60
#: Least seconds of an estimate that nobody has given: locks, triggers and a busy server take their time too.
LEAST_S: Final = 60.0
#: Times the estimate after which a run is stopped.
FACTOR: Final = 3.0
#: Rows of one count, so that none takes long.
_COUNT_ROWS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is expected of a run."""

    #: Rows that match; None when nobody knows.
    records: int | None
    #: Seconds it should take.
    seconds: float

    def limit_s(self, settings: PatchSettings) -> float:
        """Return the seconds of work after which it is stopped.

        Args:
            settings: May say so itself.
        """
        return settings.max_runtime_s if settings.max_runtime_s is not None else FACTOR * self.seconds


def estimate(
    connection: Connection, execution: Execution, settings: PatchSettings, count: int | None
) -> Estimate:
    """Estimate a run.

    Args:
        connection: The database.
        execution: The run.
        settings: What the configuration says.
        count: Rows that match now; None when nobody has counted them.

    Returns:
        The estimate.
    """
    trial = next(
        (
            other
            for other in records.recent(connection, patch_name=execution.patch_name, limit=200)
            if other.kind != "run"
            and other.status == "completed"
            and other.parameters_hash == execution.parameters_hash
            and other.estimated_s is not None
        ),
        None,
    )
    rows = count if count is not None else settings.estimated_records
    if rows is None and trial is not None:
        rows = trial.estimated_records
    if settings.estimated_duration_s is not None:
        return Estimate(rows, settings.estimated_duration_s)
    if trial is not None and trial.estimated_s is not None:
        return Estimate(rows, max(LEAST_S, trial.estimated_s))
    return Estimate(rows, max(LEAST_S, (rows or 0) / ROWS_PER_S))


def count_matching(connection: Connection, keyset: Keyset) -> int:
    """Count the rows that match, a bounded number of keys at a time.

    Args:
        connection: The database.
        keyset: Table, key and condition.

    Returns:
        Rows.
    """
    total, after = 0, None
    while True:
        query = sql.SQL(
            "SELECT count(*) FILTER (WHERE keikaku_wanted), {texts}"
            " FROM (SELECT {renamed}, ({where}) AS keikaku_wanted FROM {table} WHERE {within}{order}"
            " LIMIT {limit}) c"
        ).format(
            texts=sql.SQL(", ").join(
                sql.SQL("(array_agg({}::text))[count(*)::integer]").format(name) for name in keyset.names
            ),
            renamed=keyset.renamed,
            where=keyset.where,
            table=keyset.table,
            within=keyset.within(after, None),
            order=keyset.order(),
            limit=sql.Literal(_COUNT_ROWS),
        )
        row = connection.execute(query, keyset.values).fetchone()
        if row is None or row[1] is None:
            return total
        total += row[0]
        after = tuple(row[1:])
