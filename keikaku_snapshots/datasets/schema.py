"""The tables of a dataset against those of the database: found, compared, created, locked.

Everything is looked at before anything is changed, and all differences are told at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.datasets.steps import Execute, Steps, qualified, quote_name
from keikaku_snapshots.errors import SchemaDriftError
from keikaku_snapshots.postgres.ordering import order_by_references

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import sqlalchemy

    from keikaku_snapshots.datasets.dataset import Dataset, Table
    from keikaku_snapshots.datasets.encoding import Kind


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key that points to a table of the dataset."""

    #: Name of the constraint.
    name: str
    #: The referring table as SQL identifiers, and its number in the catalog.
    child: str
    child_oid: int
    #: Its referring columns, not quoted.
    columns: tuple[str, ...]
    #: The table referred to, and its number in the catalog.
    parent: str
    parent_oid: int
    #: The columns referred to, not quoted.
    parent_columns: tuple[str, ...]
    #: The operators that the server compares them with, the column referred to on the left.
    operators: tuple[str, ...]
    #: The constraint with its schema as SQL identifiers, and whether it can be checked later
    #: than it is now.
    sql: str
    may_wait: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A table of the dataset as it is in the database."""

    #: The dataset's description of it.
    table: Table
    #: Its number in the catalog.
    oid: int
    #: Its schema and name there, not quoted.
    schema: str
    name: str
    #: The columns that the rows fill, in order.
    columns: tuple[str, ...]
    #: How each of them turns dict and list into text.
    kinds: tuple[Kind, ...]
    #: True when it has the column that marks test rows.
    has_marker: bool
    #: Filled columns that own a sequence, and the sequence as text.
    sequences: dict[str, str] = field(default_factory=dict)
    #: Tables with the same number, not 0, refer to each other in a circle.
    circle: int = 0

    @property
    def sql(self) -> str:
        """Schema and name as SQL identifiers."""
        return qualified(self.schema, self.name)


# One row for each table asked for: its catalog number, or nulls.
_RESOLVE = """
SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text
FROM unnest($1::text[]) WITH ORDINALITY AS w (name, ord)
LEFT JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(w.name)
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY w.ord
"""

_COLUMNS = """
SELECT a.attrelid::int8, a.attname::text,
       (a.attnotnull OR t.typnotnull)
         AND NOT (a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL) AS needs_value,
       a.attgenerated <> '' AS generated,
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       pg_catalog.pg_get_serial_sequence(a.attrelid::regclass::text, a.attname::text)
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = ANY ($1::int8[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

# Whether text made for the model's type fits the column: the same type, below domains; any
# two of strings or of numbers; text into a string for an enum.
_TYPES = """
WITH wanted AS (
  SELECT w.ord, w.rel::oid AS rel, w.col, pg_catalog.to_regtype(w.typ)::oid AS typ
  FROM unnest($1::int8[], $2::text[], $3::text[]) WITH ORDINALITY AS w (rel, col, typ, ord)
)
SELECT w.typ IS NOT NULL AND (
         t.oid = w.typ OR t.typbasetype = w.typ
         OR (t.typcategory = m.typcategory AND t.typcategory IN ('S', 'N'))
         OR (m.typcategory = 'E' AND t.typcategory = 'S')
         OR (t.typcategory = 'A' AND m.typcategory = 'A' AND te.typcategory = me.typcategory
             AND te.typcategory IN ('S', 'N'))),
       (SELECT array_agg(e.enumlabel::text) FROM pg_catalog.pg_enum e
        WHERE e.enumtypid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END)
FROM wanted w
JOIN pg_catalog.pg_attribute a ON a.attrelid = w.rel AND a.attname = w.col AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_type m ON m.oid = w.typ
LEFT JOIN pg_catalog.pg_type te ON te.oid = t.typelem
LEFT JOIN pg_catalog.pg_type me ON me.oid = m.typelem
ORDER BY w.ord
"""

_FOREIGN_KEYS = """
SELECT c.conname::text, cn.nspname::text, cr.relname::text,
       coalesce(pg_catalog.pg_partition_root(c.conrelid), c.conrelid)::oid::int8,
       (SELECT array_agg(a.attname::text ORDER BY k.ord)
        FROM unnest(c.conkey) WITH ORDINALITY AS k (num, ord)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num),
       pn.nspname::text, pr.relname::text,
       coalesce(pg_catalog.pg_partition_root(c.confrelid), c.confrelid)::oid::int8,
       (SELECT array_agg(a.attname::text ORDER BY k.ord)
        FROM unnest(c.confkey) WITH ORDINALITY AS k (num, ord)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.num),
       (SELECT array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.ord)
        FROM unnest(c.conpfeqop) WITH ORDINALITY AS k (num, ord)
        JOIN pg_catalog.pg_operator o ON o.oid = k.num
        JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace),
       format('%I.%I', cn.nspname, c.conname), c.condeferrable AND NOT c.condeferred
FROM pg_catalog.pg_constraint c
JOIN pg_catalog.pg_class cr ON cr.oid = c.conrelid
JOIN pg_catalog.pg_namespace cn ON cn.oid = cr.relnamespace
JOIN pg_catalog.pg_class pr ON pr.oid = c.confrelid
JOIN pg_catalog.pg_namespace pn ON pn.oid = pr.relnamespace
WHERE c.contype = 'f' AND c.conparentid = 0
  AND coalesce(pg_catalog.pg_partition_root(c.confrelid), c.confrelid)::oid = ANY ($1::int8[]::oid[])
ORDER BY 2, 3, 1
"""


#: Number of the advisory lock under which missing tables are created.
_CREATION_LOCK = int.from_bytes(b"keikaku1", "big", signed=True)


def prepare_tables(dataset: Dataset, *, create: bool, schema: str | None) -> Steps[list[Found]]:
    """Find the dataset's tables, create missing ones, and compare all with the model.

    Args:
        dataset: Whose tables.
        create: Create missing ones.
        schema: Where tables without a schema of their own are; the search path decides when None.

    Returns:
        The tables, parents first.

    Raises:
        SchemaDriftError: Tables are missing or have another form; all differences are listed.
    """
    names = [_qualified_name(table, schema) for table in dataset.tables]
    rows = yield Execute(_RESOLVE, (names,))
    missing = [table for table, row in zip(dataset.tables, rows, strict=True) if row[0] is None]
    if missing and not create:
        raise SchemaDriftError(
            "tables of the dataset are missing in the database",
            found=", ".join(table.name for table in missing),
            hint="Run the migrations first, or pass create_tables=True (--create-tables).",
        )
    if missing:
        # Two processes that find the same tables missing create them one after the other.
        yield Execute("SELECT pg_catalog.pg_advisory_xact_lock($1::int8)::text", (_CREATION_LOCK,))
        rows = yield Execute(_RESOLVE, (names,))
        missing = [table for table, row in zip(dataset.tables, rows, strict=True) if row[0] is None]
        yield from _create(missing, schema)
        rows = yield Execute(_RESOLVE, (names,))
    found = yield from _compare(dataset, rows)
    keys = yield from foreign_keys(found)
    return in_order(found, keys)


def _qualified_name(table: Table, schema: str | None) -> str:
    return qualified(table.table.schema or schema, table.table.name)


def _create(missing: Sequence[Table], schema: str | None) -> Steps[None]:
    from sqlalchemy import create_mock_engine
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateSchema, CreateTable

    statements: list[Any] = []
    engine = create_mock_engine(
        "postgresql+psycopg://", lambda ddl, *_args, **_keywords: statements.append(ddl)
    )
    for name in sorted({table.table.schema or schema or "" for table in missing} - {""}):
        rows = yield Execute("SELECT pg_catalog.to_regnamespace($1::text) IS NULL", (quote_name(name),))
        if rows[0][0]:  # IF NOT EXISTS would ask for the right to create one in any case
            statements.append(CreateSchema(name))
    for metadata in {id(table.table.metadata): table.table.metadata for table in missing}.values():
        wanted = [table.table for table in missing if table.table.metadata is metadata]
        metadata.create_all(engine, tables=wanted, checkfirst=False)
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    created = {table.table for table in missing}
    for statement in statements:
        if isinstance(statement, CreateTable) and statement.element not in created:
            continue
        if type(statement).__name__ == "CreateEnumType" and (
            yield from _type_exists(statement.element, schema)
        ):
            continue
        yield Execute(str(statement.compile(dialect=dialect)).strip())


def _type_exists(enum: Any, schema: str | None) -> Steps[bool]:
    rows = yield Execute(
        "SELECT pg_catalog.to_regtype($1::text) IS NOT NULL", (qualified(enum.schema or schema, enum.name),)
    )
    return bool(rows[0][0])


def _compare(dataset: Dataset, rows: Sequence[tuple[Any, ...]]) -> Steps[list[Found]]:
    problems: list[str] = []
    columns = yield Execute(_COLUMNS, ([row[0] for row in rows],))
    there: dict[int, dict[str, tuple[Any, ...]]] = {row[0]: {} for row in rows}
    for column in columns:
        there[column[0]][column[1]] = column
    found = []
    for table, (oid, schema, name, kind) in zip(dataset.tables, rows, strict=True):
        if kind not in {"r", "p"}:
            problems.append(f"{schema}.{name} is no table (kind {kind!r} of pg_class)")
            continue
        filled = table.filled_columns()
        problems += _column_problems(f"{schema}.{name}", filled, there[oid])
        sequences = {c: there[oid][c][5] for c in filled if c in there[oid] and there[oid][c][5]}
        kinds = tuple(_kind(table.table.columns[c]) for c in filled)
        found.append(Found(table, oid, schema, name, filled, kinds, dataset.marker in there[oid], sequences))
    problems += yield from _type_problems(found, there)
    if problems:
        raise SchemaDriftError(
            f"the database has tables of another form than dataset {dataset.name!r}",
            found="\n".join(problems),
            hint="Migrate the tables, correct the dataset's model, or use another database or schema. "
            "Nothing was changed.",
        )
    return found


def _column_problems(table: str, filled: Sequence[str], there: dict[str, tuple[Any, ...]]) -> list[str]:
    problems = [f"{table}: column {column} is missing" for column in filled if column not in there]
    problems += [
        f"{table}: column {column} is generated by the server and cannot be filled"
        for column in filled
        if column in there and there[column][3]
    ]
    problems += [
        f"{table}: column {name} ({row[4]}) is NOT NULL without a default, and the dataset does not fill it"
        for name, row in there.items()
        if row[2] and not row[3] and name not in filled
    ]
    return problems


def _type_problems(found: Sequence[Found], there: dict[int, dict[str, tuple[Any, ...]]]) -> Steps[list[str]]:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.exc import CompileError

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    asked: list[tuple[Found, str, str, Any]] = []
    for table in found:
        for name in table.columns:
            kind = table.table.table.columns[name].type
            try:
                wanted = str(kind.compile(dialect=dialect))
            except CompileError:  # a reflected type that SQLAlchemy does not know
                continue
            if name in there[table.oid]:
                asked.append((table, name, wanted, kind))
    rows = yield Execute(
        _TYPES, ([t.oid for t, *_ in asked], [name for _, name, *_ in asked], [typ for _, _, typ, _ in asked])
    )
    problems = []
    for (table, name, wanted, kind), (fits, labels) in zip(asked, rows, strict=True):
        where = f"{table.schema}.{table.name}: column {name}"
        if not fits:
            problems.append(f"{where} is {there[table.oid][name][4]}, the dataset has {wanted}")
        unknown = [
            label for label in getattr(kind, "enums", ()) if labels is not None and label not in labels
        ]
        if unknown:
            problems.append(f"{where}: its enum lacks {', '.join(unknown)}")
    return problems


def _kind(column: sqlalchemy.Column[Any]) -> Kind:
    from sqlalchemy import ARRAY, JSON

    if isinstance(column.type, JSON):
        return "json"
    return "array" if isinstance(column.type, ARRAY) else "plain"


def foreign_keys(found: Sequence[Found]) -> Steps[list[ForeignKey]]:
    """The foreign keys of any table of the database that point to these tables."""
    rows = yield Execute(_FOREIGN_KEYS, ([table.oid for table in found],))
    return [
        ForeignKey(
            name=row[0],
            child=qualified(row[1], row[2]),
            child_oid=row[3],
            columns=tuple(row[4]),
            parent=qualified(row[5], row[6]),
            parent_oid=row[7],
            parent_columns=tuple(row[8]),
            operators=tuple(row[9]),
            sql=row[10],
            may_wait=row[11],
        )
        for row in rows
    ]


def in_order(found: Sequence[Found], keys: Iterable[ForeignKey]) -> list[Found]:
    """The tables, parents first; in the dataset's order where they refer to each other or not at all."""
    by_oid = {table.oid: table for table in found}
    label = {table.oid: (place, table.oid) for place, table in enumerate(found)}
    pairs = {
        (label[key.child_oid], label[key.parent_oid])
        for key in keys
        if key.child_oid in by_oid and key.parent_oid in by_oid
    }
    order, circles = order_by_references(label.values(), pairs)
    circle_of = {oid: number for number, circle in enumerate(circles, start=1) for _, oid in circle}
    return [replace(by_oid[oid], circle=circle_of.get(oid, 0)) for _, oid in order]


def waiting_keys(found: Sequence[Found]) -> Steps[list[str]]:
    """The foreign keys of circles between the tables that can be checked later, as SQL identifiers."""
    if not any(table.circle for table in found):
        return []
    circle_of = {table.oid: table.circle for table in found}
    keys = yield from foreign_keys(found)
    return [
        key.sql
        for key in keys
        if key.may_wait
        and circle_of.get(key.child_oid)
        and circle_of[key.child_oid] == circle_of[key.parent_oid]
    ]


def set_constraints(keys: Sequence[str], mode: str) -> Steps[None]:
    """Check these constraints DEFERRED or IMMEDIATE from now on."""
    if keys:
        yield Execute(f"SET CONSTRAINTS {', '.join(keys)} {mode}")


def lock_tables(found: Sequence[Found]) -> Steps[None]:
    """Keep other writers out until the transaction ends; readers go on.

    EXCLUSIVE, because only this mode also stops rows elsewhere from beginning to
    refer to ours: their foreign-key check takes a ROW SHARE lock here.
    """
    listed = ", ".join(table.sql for table in sorted(found, key=lambda table: table.sql))
    yield Execute(f"LOCK TABLE {listed} IN EXCLUSIVE MODE")


def taken_numbers(found: Sequence[Found]) -> Steps[dict[str, int]]:
    """The highest number of each integer key that the rows fill, by the table's name in the dataset."""
    taken: dict[str, int] = {}
    for table in found:
        for column in table.sequences:
            rows = yield Execute(f"SELECT max({quote_name(column)})::int8 FROM {table.sql}")  # noqa: S608 - names are quoted
            taken[table.table.name] = max(taken.get(table.table.name, 0), rows[0][0] or 0)
    return taken


def reset_sequences(found: Sequence[Found]) -> Steps[None]:
    """Let every sequence go on after the highest number copied (FAULTS 82).

    setval is not undone by a rollback (FAULTS 83), so this comes last.
    """
    for table in found:
        for column, sequence in table.sequences.items():
            highest = f"SELECT coalesce(max({quote_name(column)}), 0)::int8 + 1 FROM {table.sql}"  # noqa: S608 - names are quoted
            # A sequence that counts down, or does not reach this far, goes on where it is:
            # it gives none of our numbers, or is for its owner to widen.
            put_right = (
                f"SELECT pg_catalog.setval(seqrelid::regclass, greatest(({highest}), seqmin), false) "  # noqa: S608 - as above
                "FROM pg_catalog.pg_sequence WHERE seqrelid = $1::text::regclass "
                f"AND seqincrement > 0 AND ({highest}) <= seqmax"
            )
            yield Execute(put_right, (sequence,))
