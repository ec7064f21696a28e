"""An application that edits rows while a patch runs, and what must be true of them in the end."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.patches.changes import Change, Delete, Insert, Row, Skip, Update
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, data_patch
from keikaku_snapshots.patches.points import visit
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.postgres.url import DatabaseURL

ROWS = 300
#: What the patch adds; the application writes negative numbers only.
STEP = 1000
#: What the patch adds to the id of a row for the row that it puts beside it.
ADDED = 1_000_000

SCHEMA = f"""
DROP TABLE IF EXISTS public.storm, public.edits;
CREATE TABLE public.storm (id bigint PRIMARY KEY, qty integer NOT NULL, name text NOT NULL);
CREATE TABLE public.edits (
  number bigint GENERATED ALWAYS AS IDENTITY, id bigint, what text, qty integer, name text);
INSERT INTO storm SELECT i, i % 500, 'row ' || i FROM generate_series(1, {ROWS}) i;
"""


@data_patch("storm_set")
class StormSet(SqlPatch):
    """Add to every number."""

    table = "public.storm"
    set = {"qty": f"qty + {STEP}"}  # noqa: RUF012 - a declaration


@data_patch("storm_rows")
class StormRows(RowPatch):
    """Add to most numbers, remove some rows, add others."""

    table, reads, writes = "public.storm", ("qty",), ("qty",)

    def transform(self, rows: Iterable[Row], ctx: PatchContext) -> Iterable[Change]:
        """Decide by the id."""
        for row in rows:
            if row.id % 10 == 0:
                yield Delete(row)
            elif row.id % 10 == 1:
                yield Update(row, qty=row.qty + STEP)
                yield Insert("public.storm", id=row.id + ADDED, qty=0, name="added")
            elif row.id % 10 == 2:
                yield Skip(row)
            else:
                yield Update(row, qty=row.qty + STEP)


def edit(url: DatabaseURL, seed: str) -> None:
    """Be the application until killed: each edit and the note of it are one transaction."""
    dice = random.Random(seed)
    number = 0
    with connect(url) as connection:
        while True:
            number += 1
            one = dice.randint(1, ROWS)
            what = dice.choice(["qty", "name", "name", "both", "delete", "insert"])
            # A row of its own among those that the run adds would raise the run's upper key over them.
            if what != "insert" and dice.random() < 0.1:
                one += ADDED
            try:
                with connection.transaction():
                    _edit(connection, one, what, -number)
            except psycopg.errors.DeadlockDetected:
                continue
            time.sleep(dice.uniform(0, 0.01))


def _edit(connection: psycopg.Connection[Any], one: int, what: str, value: int) -> None:
    name = f"app {value}"
    if what == "insert":
        done = connection.execute(
            "INSERT INTO storm VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", [one, value, name]
        )
    elif what == "delete":
        done = connection.execute("DELETE FROM storm WHERE id = %s", [one])
    else:
        sets = {"qty": "qty = %(qty)s", "name": "name = %(name)s", "both": "qty = %(qty)s, name = %(name)s"}
        done = connection.execute(
            f"UPDATE storm SET {sets[what]} WHERE id = %(id)s",
            {"qty": value, "name": name, "id": one},
        )
    if done.rowcount:
        connection.execute(
            "INSERT INTO edits (id, what, qty, name) VALUES (%s, %s, %s, %s)", [one, what, value, name]
        )


def in_child(work: Callable[[], object], point: str = "", times: int = 0) -> int:
    """Start a child that does the work and is killed at the n-th visit of a point; returns its number."""
    child = os.fork()
    if child:
        return child
    left = [times]

    def visitor(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        visit(visitor)
        work()
        status = 0
    except KeikakuError as error:
        status = error.exit_code
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a child; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass
class Expected:
    """What the application made of a row last; None where it said nothing."""

    #: Number.
    qty: int | None = None
    #: Name.
    name: str | None = None
    #: It removed the row last.
    is_gone: bool = False
    #: It put it there itself.
    is_put: bool = False
    #: It put it there and removed it again: nobody can see that later.
    is_unclear: bool = False


def edits_of(connection: psycopg.Connection[Any]) -> dict[int, Expected]:
    """Read what the application did, row by row."""
    found: dict[int, Expected] = {}
    for one, what, qty, name in connection.execute("SELECT id, what, qty, name FROM edits ORDER BY number"):
        row = found.setdefault(one, Expected())
        if what == "delete":
            found[one] = Expected(is_gone=True, is_unclear=row.is_put or row.is_unclear)
        elif what == "insert":
            found[one] = Expected(qty, name, is_put=True, is_unclear=row.is_unclear)
        else:
            row.qty = qty if what in {"qty", "both"} else row.qty
            row.name = name if what in {"name", "both"} else row.name
    return found


def problems(connection: psycopg.Connection[Any], *, rolled_back: bool, by_rows: bool) -> list[str]:
    """List the rows that are neither original, nor patched once, nor as the application made them."""
    rows = {one: (qty, name) for one, qty, name in connection.execute("SELECT id, qty, name FROM storm")}
    edits = edits_of(connection)
    wrong = []
    for one in sorted({*rows, *edits, *range(1, ROWS + 1)}):
        said, row = edits.get(one, Expected()), rows.get(one)
        allowed = _allowed(one, said, rolled_back=rolled_back, by_rows=by_rows)
        if row not in allowed and not said.is_unclear:
            wrong.append(
                f"row {one} is {row}, the application said {said}, allowed {sorted(map(str, allowed))}"
            )
    return wrong


def _allowed(one: int, said: Expected, *, rolled_back: bool, by_rows: bool) -> set[tuple[int, str] | None]:
    ours = one > ADDED
    if said.is_gone:
        # What the application removed stays away; a row that only the run had made may have been made later.
        return {None, (0, "added")} if ours and not rolled_back else {None}
    touched = said.qty is not None or said.name is not None
    if ours:
        kept = (said.qty if said.qty is not None else 0, said.name or "added")
        if said.is_put:
            return {kept}
        return (
            {kept}
            if touched
            else {None}
            if rolled_back or not _adds(one, by_rows=by_rows)
            else {(0, "added")}
        )
    name = said.name or f"row {one}"
    qty = said.qty if said.qty is not None else one % 500
    if rolled_back:
        return {(qty, name)}
    kind = one % 10 if by_rows else 9
    if kind == 0:
        return {None, (qty, name)} if said.is_put else {None}
    if kind == 2:
        return {(qty, name)}
    # Written after the batch of the row, the application's number stands; before, it was patched.
    return {(qty + STEP, name), (qty, name)} if said.qty is not None else {(qty + STEP, name)}


def _adds(one: int, *, by_rows: bool) -> bool:
    return by_rows and one % 10 == 1


def unexplained(connection: psycopg.Connection[Any], log: str, *, by_rows: bool) -> list[int]:
    """List the rows of which the undo says something else than that the run changed them once."""
    query = f"""
        SELECT c1, array_agg(op::text ORDER BY seq), min(c2) FILTER (WHERE op = '-'),
               min(c2) FILTER (WHERE op = '+'), count(DISTINCT c3) FROM {log} GROUP BY c1
    """
    wrong = []
    for one, ops, old, new, names in connection.execute(query.encode()).fetchall():
        if one > ADDED:
            fits = ops == ["+"] and new == 0
        elif by_rows and one % 10 == 0:
            fits = ops == ["-"]
        else:
            fits = ops == ["-", "+"] and new == old + STEP and names == 1
        if not fits:
            wrong.append(one)
    return wrong
