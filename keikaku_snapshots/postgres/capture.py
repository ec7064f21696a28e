"""Undo capture: the tables, functions and triggers that keep what other sessions change.

Everything is in one schema of ours whose name is a parameter. Nothing there
depends on an object of the user, so that the user may drop and alter whatever
they like. A capture that is always on (rewind) lets every statement pass: a
function that no longer fits its table leaves a mark. A strict one (patches)
works for one session only and makes a statement fail that it cannot keep.

What is kept of a table is a log. ``-`` is an old row as it was, ``=`` the
same of a row whose key stayed, ``+`` a new row: its key, or in mode "images"
all of it. From the log the net effect follows (`capture_net`).
"""
# ruff: noqa: E501, S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.capture_tables import CapturedColumn, CapturedTable, Member

#: Search path of our functions: names of the user never come into play.
SEARCH_PATH = "SET search_path = pg_catalog, pg_temp"
#: How values of the user's types are written as text and read again, whatever the session has set.
STYLES = {
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "lc_monetary": "C",
}
#: A strict capture met a changed key, or TRUNCATE.
KEY_STATE, TRUNCATE_STATE = "KPT01", "KPT02"
_STYLED = SEARCH_PATH + "".join(f" SET {name} = '{value}'" for name, value in STYLES.items())


@dataclass(frozen=True, slots=True)
class CaptureNames:
    """What the objects of one capture are called."""

    #: The schema; triggers on the user's tables begin with its name too.
    schema: str
    #: SQL condition under which capture functions do their work.
    active: str
    #: Key of the advisory lock that writers share and that waits for them, two numbers; None: no such lock.
    lock: tuple[int, int] | None = None
    #: What tells the objects of several captures in one schema apart, such as ``_0a1b2c``.
    tag: str = ""
    #: True: a statement that cannot be kept fails, so do TRUNCATE and changes of keys, and the log says which
    #: transaction wrote it. False: every statement passes, and a failed capture leaves a mark.
    is_strict: bool = False

    @property
    def lock_arguments(self) -> str:
        """The lock's key as SQL."""
        return ", ".join(map(str, self.lock or ()))

    @property
    def counter(self) -> str:
        """The sequence that numbers entries of the logs, as SQL."""
        return f"{self.schema}.counter{self.tag}"

    def log(self, table: CapturedTable) -> str:
        """Return the log of a table, as SQL."""
        return f"{self.schema}.undo{self.tag}_{table.number}"

    def function(self, what: str, table: CapturedTable) -> str:
        """Return a capture function of a table, as SQL."""
        return f"{self.schema}.{what}{self.tag}_{table.number}"

    def trigger(self, what: str) -> str:
        """Return the name of a trigger."""
        return f"{self.schema}{self.tag}_{what}"


def literal(text: str) -> str:
    """Return a text as an SQL string.

    Args:
        text: Any text, such as the body of a function.
    """
    return sql.Literal(text).as_string(None)


def function(
    name: str,
    body: str,
    *,
    arguments: str = "()",
    returns: str = "trigger",
    definer: bool = True,
    settings: str = SEARCH_PATH,
) -> str:
    """Return the statement that makes a plpgsql function.

    Args:
        name: Schema and name as SQL.
        body: The function's text.
        arguments: Its parameters as SQL.
        returns: Its result type.
        definer: Run with the rights of the one who made it, whoever writes.
        settings: SET clauses.
    """
    security = "SECURITY DEFINER" if definer else ""
    return (
        f"CREATE FUNCTION {name}{arguments} RETURNS {returns} LANGUAGE plpgsql {security} {settings}"
        f" AS {literal(body)};\n"
        f"REVOKE ALL ON FUNCTION {name}{arguments} FROM PUBLIC;\n"
    )


#: The transaction has changed keys, or could have.
_KEYS_CHANGE = "keikaku.keys_change"


# A snapshot of REPEATABLE READ does not change, but the status of a later transaction can be asked for; the
# first number that nobody has yet is an error.
_SEES_ALL = """DECLARE
  seen pg_snapshot := pg_current_snapshot();
  later bigint := pg_snapshot_xmax(seen)::text::bigint;
BEGIN
IF EXISTS (SELECT FROM pg_snapshot_xip(seen) x WHERE pg_xact_status(x) = 'committed') THEN RETURN false; END IF;
FOR tries IN 1..10000 LOOP
  IF pg_xact_status(later::text::xid8) = 'committed' THEN RETURN false; END IF;
  later := later + 1;
END LOOP;
RETURN false;
EXCEPTION WHEN invalid_parameter_value THEN RETURN true; END"""


def common_statements(names: CaptureNames) -> str:
    """Make what all tables share: the counter, the marks of failed captures, the lock of writers.

    Args:
        names: Names of the capture.

    Returns:
        SQL for a new schema.
    """
    schema = names.schema
    return (
        f"CREATE SEQUENCE {names.counter};\n"
        f"CREATE TABLE {schema}.broken (relation oid, state text, message text);\n"
        + function(
            f"{schema}.mark_broken",
            f"BEGIN INSERT INTO {schema}.broken VALUES (relation, state, message);\n"
            "EXCEPTION WHEN OTHERS THEN NULL; END",
            arguments="(relation oid, state text, message text)",
            returns="void",
        )
        + function(f"{schema}.sees_all", _SEES_ALL, returns="boolean")
        + function(f"{schema}.begin_write", "BEGIN RETURN NULL; END", definer=False, settings="")
        + function(
            f"{schema}.change_keys",
            f"BEGIN PERFORM pg_catalog.set_config({literal(_KEYS_CHANGE)}, 'on', true); RETURN NULL; END",
            definer=False,
            settings="",
        )
    )


def table_statements(names: CaptureNames, table: CapturedTable) -> str:
    """Make the log of a table, its capture functions and the triggers on it and its partitions.

    Args:
        names: Names of the capture.
        table: The table.

    Returns:
        SQL; every trigger takes a lock on its table that lets readers pass.
    """
    return log_statements(names, table) + trigger_statements(names, table)


def log_statements(names: CaptureNames, table: CapturedTable) -> str:
    """Make the log of a table alone.

    Args:
        names: Names of the capture.
        table: The table.

    Returns:
        SQL.
    """
    columns = "".join(f", {column.kept} {column.kept_type}" for column in table.columns)
    transaction = ", transaction xid8" if names.is_strict else ""
    return (
        f'CREATE TABLE {names.log(table)} (seq bigint, op "char"{transaction}{columns});\n'
        # A publication of all tables has ours too; the server would forbid to empty them.
        f"ALTER TABLE {names.log(table)} REPLICA IDENTITY FULL;\n"
    )


def trigger_statements(names: CaptureNames, table: CapturedTable) -> str:
    """Make the capture functions of a table and the triggers on it and its partitions.

    Args:
        names: Names of the capture.
        table: The table.

    Returns:
        SQL; every trigger takes a lock on its table that lets readers pass.
    """
    return "".join(_capture_functions(names, table)) + "".join(
        _triggers(names, table, member) for member in table.members
    )


def _capture_functions(names: CaptureNames, table: CapturedTable) -> Iterable[str]:
    settings = _STYLED if any(column.cast for column in table.columns) else SEARCH_PATH
    if table.is_inherited:
        bodies = {"row": _by_row(names, table)}
    else:
        bodies = {
            "insert": _insert(names, table),
            "update": _update(names, table),
            "delete": _log_rows(names, table, "'-'", "old_rows"),
        }
    bodies["truncate"] = _truncate(names, table)
    for what, body in bodies.items():
        yield function(names.function(what, table), _guarded(names, body), settings=settings)


def _guarded(names: CaptureNames, body: str) -> str:
    """Let the application's statement pass whatever happens to ours, unless the capture is strict.

    The switch is read here and not in WHEN, as the function has to be compiled anyway.
    """
    # A column of the user may be called "new" or "tg_op".
    head = f"#variable_conflict use_column\nBEGIN\nIF NOT ({names.active}) THEN RETURN NULL; END IF;\n"
    if names.is_strict:
        return f"{head}{body}\nRETURN NULL;\nEND"
    return (
        f"{head}BEGIN\n{body}\nEXCEPTION WHEN OTHERS THEN\n"
        f"  PERFORM {names.schema}.mark_broken(TG_RELID, SQLSTATE, SQLERRM);\nEND;\nRETURN NULL;\nEND"
    )


def kept_value(column: CapturedColumn, source: str = "") -> str:
    """Return what is kept of a column, as SQL.

    Args:
        column: The column.
        source: What stands before its name, such as ``t.``.
    """
    value = f"{source}{column.identifier}"
    # A cast that a user made would run with our rights and need not have a way back; concat asks the type.
    return (
        f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"
        if column.cast
        else value
    )


def _all_columns(table: CapturedTable) -> str:
    return "".join(f", {column.kept}" for column in table.columns)


def _all_values(table: CapturedTable, source: str = "") -> str:
    return "".join(f", {kept_value(column, source)}" for column in table.columns)


def _next(names: CaptureNames) -> str:
    return f"nextval('{names.counter}'::regclass)"


def _head(names: CaptureNames, table: CapturedTable) -> str:
    transaction = ", transaction" if names.is_strict else ""
    return f"INSERT INTO {names.log(table)} (seq, op{transaction}{_all_columns(table)})"


def _marks(names: CaptureNames, op: str) -> str:
    """Values of the columns that stand before those of the user."""
    # A subquery is asked once and not for each row.
    transaction = ", (SELECT pg_current_xact_id())" if names.is_strict else ""
    return f"{_next(names)}, {op}{transaction}"


def _log_rows(names: CaptureNames, table: CapturedTable, op: str, rows: str, where: str = "") -> str:
    return f"{_head(names, table)} SELECT {_marks(names, op)}{_all_values(table)} FROM {rows}{where};"


def _log_keys(names: CaptureNames, table: CapturedTable, where: str = "") -> str:
    """Log the keys of new rows; nothing asks for their order, so they get no number."""
    key = table.key_columns()
    kept = "".join(f", {column.kept}" for column in key)
    values = "".join(f", {kept_value(column)}" for column in key)
    return f"INSERT INTO {names.log(table)} (op{kept}) SELECT '+'{values} FROM new_rows{where};"


def _insert(names: CaptureNames, table: CapturedTable) -> str:
    if table.mode == "images":
        return _log_rows(names, table, "'+'", "new_rows")
    return _log_keys(names, table)


def _update(names: CaptureNames, table: CapturedTable) -> str:
    if table.mode == "images":
        return (
            _refuse_other_keys(names, table)
            + _log_rows(names, table, "'-'", "old_rows")
            + "\n"
            + _log_rows(names, table, "'+'", "new_rows")
        )
    # IN and NOT IN of one side of the other are hashed, whatever the planner thinks of the number of rows.
    key = ", ".join(column.identifier for column in table.key_columns())
    stays = f"CASE WHEN ({key}) IN (SELECT {key} FROM new_rows) THEN '=' ELSE '-' END::\"char\""
    full = (
        _log_rows(names, table, stays, "old_rows")
        + "\n"
        + _log_keys(names, table, f" WHERE ({key}) NOT IN (SELECT {key} FROM old_rows)")
    )
    if not names.lock:
        return full
    # A new session has to plan what it runs, so what nearly all of them run is simple. Nothing changes a key
    # that is not in the SET clause: a table with triggers of the user has the other mode.
    simple = _log_rows(names, table, "'='", "old_rows")
    return f"IF current_setting({literal(_KEYS_CHANGE)}, true) = 'on' THEN\n{full}\nELSE\n{simple}\nEND IF;"


def _fixed_columns(table: CapturedTable) -> list[CapturedColumn]:
    """Columns of which a strict capture keeps no change: what finds a row again, and what no UPDATE sets."""
    key = table.key_columns()
    return key + [column for column in table.columns if column.is_identity_always and column not in key]


def _refuse_other_keys(names: CaptureNames, table: CapturedTable) -> str:
    if not names.is_strict:
        return ""
    fixed = ", ".join(kept_value(column) for column in _fixed_columns(table))
    return _raise_if(
        f"EXISTS (SELECT {fixed} FROM new_rows EXCEPT SELECT {fixed} FROM old_rows)",
        "a key or identity column of % was changed",
        KEY_STATE,
    )


def _raise_if(condition: str, message: str, state: str) -> str:
    return (
        f"IF {condition} THEN\n  RAISE EXCEPTION {literal(message)}, TG_RELID::regclass"
        f" USING ERRCODE = {literal(state)};\nEND IF;\n"
    )


def _by_row(names: CaptureNames, table: CapturedTable) -> str:
    def log(op: str, source: str) -> str:
        return f"{_head(names, table)} VALUES ({_marks(names, op)}{_all_values(table, source)});"

    old, new = log("'-'", "OLD."), log("'+'", "NEW.")
    refused = ""
    if names.is_strict:
        was, now = (
            ", ".join(kept_value(column, source) for column in _fixed_columns(table))
            for source in ("OLD.", "NEW.")
        )
        changed = f"TG_OP = 'UPDATE' AND ROW({was}) IS DISTINCT FROM ROW({now})"
        refused = _raise_if(changed, "a key or identity column of % was changed", KEY_STATE)
    return f"{refused}IF TG_OP <> 'INSERT' THEN {old} END IF;\nIF TG_OP <> 'DELETE' THEN {new} END IF;"


def _truncate(names: CaptureNames, table: CapturedTable) -> str:
    if names.is_strict:
        return _raise_if("true", "TRUNCATE of % cannot be taken back row by row", TRUNCATE_STATE)
    # The same function serves all partitions: each empties itself.
    head = _head(names, table)
    values = f" SELECT {_next(names)}, '-'{_all_values(table)} FROM ONLY "
    return (
        "IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable')\n"
        f"   AND NOT {names.schema}.sees_all() THEN\n"
        "  RAISE EXCEPTION 'rows that this transaction does not see' USING ERRCODE = 'serialization_failure';\n"
        f"END IF;\nEXECUTE {literal(head + values)} || TG_RELID::regclass;"
    )


def _triggers(names: CaptureNames, table: CapturedTable, member: Member) -> str:
    """Triggers of one table; ALWAYS, because loaders that set session_replication_role must not escape."""
    target = member.identifier
    made: dict[str, str] = {}
    if names.lock:
        # Asking the condition takes the lock; it is never true. The server parses it anew for each statement, but a
        # function in its place would be compiled for each table in each session.
        made["write"] = (
            f"BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {target}"
            f" WHEN (pg_catalog.pg_advisory_xact_lock_shared({names.lock_arguments}) IS NULL)"
            f" EXECUTE FUNCTION {names.schema}.begin_write()"
        )
    if names.lock and table.mode == "keys":
        key = ", ".join(column.identifier for column in table.key_columns())
        made["key"] = f"BEFORE UPDATE OF {key} ON {target} EXECUTE FUNCTION {names.schema}.change_keys()"
    if table.is_inherited:
        made["row"] = (
            f"AFTER INSERT OR UPDATE OR DELETE ON {target} FOR EACH ROW"
            f" EXECUTE FUNCTION {names.function('row', table)}()"
        )
    else:
        transitions = {
            "insert": "NEW TABLE AS new_rows",
            "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
            "delete": "OLD TABLE AS old_rows",
        }
        for what, referencing in transitions.items():
            made[what] = (
                f"AFTER {what.upper()} ON {target} REFERENCING {referencing}"
                f" EXECUTE FUNCTION {names.function(what, table)}()"
            )
    if member.holds_rows or names.is_strict:
        made["write_truncate"] = (
            f"BEFORE TRUNCATE ON {target} EXECUTE FUNCTION {names.function('truncate', table)}()"
        )
    return "".join(
        f"CREATE TRIGGER {names.trigger(what)} {text};\n"
        f"ALTER TABLE {target} ENABLE ALWAYS TRIGGER {names.trigger(what)};\n"
        for what, text in made.items()
    )
