"""What a run would do, told without doing it: the same rows, in a transaction that cannot write.

The walk is that of a real run; the changes are computed, compared with what is
there, counted and sampled. What only the server can say of a write, such as a
violated constraint, a rehearsal finds.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keikaku_snapshots.patches.apply import Texts, count_wrong, same_key, updates_of
from keikaku_snapshots.patches.definition import RowPatch, SqlPatch
from keikaku_snapshots.patches.keyset import Key, key_values, last_key, next_range
from keikaku_snapshots.patches.row_based import Transformed, read_rows, transform
from keikaku_snapshots.patches.set_based import Counts, SetBased

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.sql import Composable

    from keikaku_snapshots.patches.context import PatchContext
    from keikaku_snapshots.patches.plan import Plan
    from keikaku_snapshots.patches.row_based import Group
    from keikaku_snapshots.postgres.connect import Connection

#: Rows of the sample, of each kind of change to each table.
SAMPLE: Final = 20
#: Times the reading that a run takes with its writes, its undo and its commits; measured in benchmarks.
#: Where Python is at work, it is so in both.
WRITE_FACTOR: Final = {True: 5.0, False: 2.5}


@dataclass(slots=True)
class Found:
    """What a dry run has found so far."""

    #: Rows that met the condition.
    processed: int = 0
    #: Rows that would be changed, added or removed.
    changed: int = 0
    #: Rows that are as they should be already.
    unchanged: int = 0
    #: Rows that would not be as they should be.
    inconsistent: int = 0
    #: Rejected rows: key and why, the first thousand.
    rejected: list[tuple[Key, str]] = field(default_factory=list)
    #: How often each reason was given.
    reasons: Counter[str] = field(default_factory=Counter)
    #: Old and new values of the first rows that would be changed.
    sample: list[dict[str, Any]] = field(default_factory=list)
    #: How the server would do the first batch.
    plan: str = ""
    #: Seconds it took.
    seconds: float = 0.0
    #: Whether the server alone computes the changes.
    is_set_based: bool = True

    def add(self, counts: Counts) -> None:
        """Add what a batch would do.

        Args:
            counts: Of the batch.
        """
        self.processed += counts.processed
        self.changed += counts.changed
        self.unchanged += counts.unchanged
        self.inconsistent += counts.inconsistent

    @property
    def estimated_s(self) -> float:
        """Seconds that a run should take."""
        return self.seconds * WRITE_FACTOR[self.is_set_based]


class DryRun:
    """Walks over the rows of a patch and computes what would become of them.

    Args:
        plan: Patch, tables and parameters.
        context: What the patch gets to know; its queries use the same transaction.
        check: Raises when memory or time is used up.
    """

    def __init__(self, plan: Plan, context: PatchContext, check: Callable[[], None] = lambda: None) -> None:
        self._plan = plan
        self._context = context
        self._check = check
        patch = plan.patch
        self._set_based = (
            SetBased(patch, plan.targets[0], plan.walked) if isinstance(patch, SqlPatch) else None
        )
        wrong = patch.verify_batch() if isinstance(patch, RowPatch | SqlPatch) else ""
        self._wrong: Composable | None = sql.SQL("({}) IS NOT TRUE").format(sql.SQL(wrong)) if wrong else None
        #: What was found.
        self.found = Found(is_set_based=self._set_based is not None)

    def run(
        self, connection: Connection, size: int, progress: Callable[[Found], None] | None = None
    ) -> Found:
        """Walk over the whole table.

        Args:
            connection: In a transaction that cannot write.
            size: Rows of a batch.
            progress: Gets what was found after each batch.

        Returns:
            What was found.
        """
        began = time.monotonic()
        keyset = self._plan.walked
        upper, after = last_key(connection, keyset), None
        while upper is not None:
            step = next_range(connection, keyset, after, upper, size)
            if step is None:
                break
            rows, matched = step
            after = rows.upper
            if matched:
                self._batch(connection, keyset.matching(rows))
            self.found.seconds = time.monotonic() - began
            self._check()
            if progress is not None:
                progress(self.found)
        return self.found

    def _batch(self, connection: Connection, condition: Composable) -> None:
        if not self.found.plan:
            self.found.plan = self._explain(connection, condition)
        if self._set_based is not None:
            self.found.add(self._set_counts(connection, self._set_based, condition))
            if self._room("update"):
                self._sample_set(connection, self._set_based, condition)
            return
        patch = self._plan.patch
        assert isinstance(patch, RowPatch)
        rows = read_rows(connection, patch, self._plan.walked, condition, self._plan.walked.values)
        transformed = transform(self._plan, patch, rows, self._context, self._check)
        self.found.add(self._row_counts(connection, transformed))
        self.found.reasons.update(why for _, why in transformed.rejects)
        self.found.rejected += transformed.rejects[: 1000 - len(self.found.rejected)]

    def _explain(self, connection: Connection, condition: Composable) -> str:
        if self._set_based is not None:
            query = self._set_based.change(condition)
        else:
            query = sql.SQL("SELECT * FROM {} WHERE {}{}").format(
                self._plan.walked.table, condition, self._plan.walked.order()
            )
        rows = connection.execute(sql.SQL("EXPLAIN (COSTS OFF) ") + query, self._plan.walked.values)
        return "\n".join(row[0] for row in rows)

    def _set_counts(self, connection: Connection, set_based: SetBased, condition: Composable) -> Counts:
        query = sql.SQL(
            "SELECT count(*), count(*) FILTER (WHERE differs), count(*) FILTER (WHERE wrong)"
            " FROM (SELECT ({}) AS differs, {} AS wrong FROM {} WHERE {}) d"
        ).format(
            set_based.differs, self._new_is_wrong(set_based.expressions), self._plan.walked.table, condition
        )
        row = connection.execute(query, self._plan.walked.values).fetchone()
        assert row is not None
        return Counts(row[0], row[1], row[0] - row[1], row[2])

    def _new_is_wrong(self, new: dict[str, Composable], source: str = "") -> Composable:
        """The condition that a row would not be as it should be, with its new values."""
        if self._wrong is None:
            return sql.SQL("false")
        prefix = sql.SQL(source)
        columns = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(new.get(name, prefix + sql.Identifier(name)), sql.Identifier(name))
            for name in self._plan.targets[0].columns
        )
        return sql.SQL("(SELECT {} FROM (SELECT {}) n)").format(self._wrong, columns)

    def _sample_set(self, connection: Connection, set_based: SetBased, condition: Composable) -> None:
        new = set_based.new_values
        query = sql.SQL("SELECT {}, {} FROM {} WHERE {} AND ({}){} LIMIT {}").format(
            self._plan.walked.key_texts,
            sql.SQL(", ").join(
                sql.SQL("{}::text, {}").format(sql.Identifier(name), text) for name, text in new.items()
            ),
            self._plan.walked.table,
            condition,
            set_based.differs,
            self._plan.walked.order(),
            sql.Literal(self._room("update")),
        )
        self._keep(connection.execute(query, self._plan.walked.values).fetchall(), tuple(new))

    def _row_counts(self, connection: Connection, transformed: Transformed) -> Counts:
        keyset, texts = self._plan.walked, Texts(connection)
        changed = of_rows = wrong = 0
        touched: set[Key] = set()
        for group in transformed.groups:
            if group.kind == "insert":
                changed += len(group.rows)
                self._sample_inserts(group, texts)
                continue
            touched.update(group.keys)
            if group.kind == "update":
                differing, violations = self._update_counts(connection, group, texts)
                wrong += violations
            else:
                differing = self._count_present(connection, group.keys)
                self._sample_deletes(group)
            changed += differing
            of_rows += differing
        rejected = {key for key, _ in transformed.rejects}
        if self._wrong is not None:
            others = [key for key in transformed.keys if key not in touched and key not in rejected]
            wrong += count_wrong(connection, keyset, others, self._wrong)
        processed = len(transformed.keys)
        unchanged = max(0, processed - len(rejected) - min(of_rows, len(touched)))
        return Counts(processed, changed, unchanged, len(rejected) + wrong, len(rejected))

    def _update_counts(self, connection: Connection, group: Group, texts: Texts) -> tuple[int, int]:
        columns = self._plan.targets[0].columns
        source, same, differs, values = updates_of(self._plan, group, texts)
        new: dict[str, Composable] = {
            name: sql.SQL("v.{}::{}").format(
                sql.Identifier(f"keikaku_value_{number}"), sql.SQL(columns[name].compare_type)
            )
            for number, name in enumerate(group.columns)
        }
        query = sql.SQL(
            "SELECT count(*) FILTER (WHERE differs), count(*) FILTER (WHERE wrong)"
            " FROM (SELECT ({}) AS differs, {} AS wrong FROM {} AS t JOIN {} ON {}) d"
        ).format(differs, self._new_is_wrong(new, "t."), self._plan.walked.table, source, same)
        row = connection.execute(query, self._plan.walked.values | values).fetchone()
        assert row is not None
        if self._room("update"):
            sample = sql.SQL("SELECT {}, {} FROM {} AS t JOIN {} ON {} WHERE {}{} LIMIT {}").format(
                self._plan.walked.key_texts,
                sql.SQL(", ").join(
                    sql.SQL("t.{}::text, ({})::text").format(sql.Identifier(name), value)
                    for name, value in new.items()
                ),
                self._plan.walked.table,
                source,
                same,
                differs,
                self._plan.walked.order(),
                sql.Literal(self._room("update")),
            )
            self._keep(connection.execute(sample, values).fetchall(), group.columns)
        return int(row[0]), int(row[1])

    def _count_present(self, connection: Connection, keys: list[Key]) -> int:
        source, values = key_values(keys, self._plan.walked)
        query = sql.SQL("SELECT count(*) FROM {} AS t JOIN {} ON {}").format(
            self._plan.walked.table, source, same_key(self._plan.walked)
        )
        row = connection.execute(query, values).fetchone()
        return int(row[0]) if row else 0

    def _keep(self, rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> None:
        width = len(self._plan.walked.columns)
        for row in rows:
            pairs = zip(names, row[width::2], row[width + 1 :: 2], strict=True)
            columns = {name: [old, new] for name, old, new in pairs if old != new}
            self._sampled("update", row[:width], columns)

    def _sample_inserts(self, group: Group, texts: Texts) -> None:
        target = self._plan.target(group.table)
        assert target is not None
        for row in group.rows[:SAMPLE]:
            columns = {
                name: [None, texts.of(value, target.columns[name])]
                for name, value in zip(group.columns, row, strict=True)
            }
            self._sampled("insert", (), columns, target.name.text)

    def _sample_deletes(self, group: Group) -> None:
        for key in group.keys[:SAMPLE]:
            self._sampled("delete", key, {})

    def _room(self, kind: str, table: str = "") -> int:
        """How many more changes of this kind to a table the sample takes."""
        name = table or self._plan.targets[0].name.text
        return SAMPLE - sum((one["kind"], one["table"]) == (kind, name) for one in self.found.sample)

    def _sampled(self, kind: str, key: Key, columns: dict[str, Any], table: str = "") -> None:
        if self._room(kind, table):
            self.found.sample.append(
                {
                    "table": table or self._plan.targets[0].name.text,
                    "key": list(key),
                    "kind": kind,
                    "columns": columns,
                }
            )
