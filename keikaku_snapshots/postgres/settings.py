"""A database's own owner, settings, grants, connection limit and comment, and giving them to another.

``CREATE DATABASE … TEMPLATE`` keeps none of them (docs/design.md, Swap). Everything is
given before the swap: until its grants are there, PUBLIC may connect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keikaku_snapshots.errors import UnsafeRestoreError, UsageError
from keikaku_snapshots.postgres.connect import translate

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection

#: Settings whose value is a list of names, each quoted by itself (variable_is_guc_list_quote of PostgreSQL).
_NAME_LISTS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
#: Privileges of a database as aclexplode names them.
_PRIVILEGES = {"CREATE", "TEMPORARY", "CONNECT"}


@dataclass(frozen=True, slots=True)
class Grant:
    """Privileges on a database that one role has."""

    #: Role; empty for PUBLIC.
    grantee: str
    #: Privilege, such as "CONNECT".
    privilege: str
    #: True if the role may pass it on.
    grantable: bool


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """What a database has of its own, beside its contents."""

    #: Owner role.
    owner: str
    #: Privileges; None for the server's defaults.
    grants: tuple[Grant, ...] | None
    #: Most connections; -1 for no limit.
    connection_limit: int
    #: Comment.
    comment: str | None
    #: True for a template that anyone may clone.
    is_template: bool
    #: (role, parameter, value) of ALTER DATABASE SET (role empty) and ALTER ROLE IN DATABASE SET.
    parameters: tuple[tuple[str, str, str], ...]


def database_settings(connection: Connection, database: str) -> DatabaseSettings:
    """Read what a database has of its own.

    Args:
        connection: Any database of the server.
        database: The database.

    Returns:
        Owner, grants, limit, comment, parameters.

    Raises:
        UsageError: There is no such database.
    """
    row = connection.execute(
        """
        SELECT pg_catalog.pg_get_userbyid(d.datdba), d.datconnlimit,
               pg_catalog.shobj_description(d.oid, 'pg_database'), d.datistemplate, d.datacl IS NOT NULL,
               ARRAY(SELECT ARRAY[
                       CASE WHEN x.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(x.grantee)::text END,
                       x.privilege_type, x.is_grantable::text]
                   FROM pg_catalog.aclexplode(d.datacl) x ORDER BY 1),
               ARRAY(SELECT ARRAY[coalesce(r.rolname::text, ''), split_part(c, '=', 1),
                       substr(c, strpos(c, '=') + 1)]
                   FROM pg_catalog.pg_db_role_setting s
                   LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole,
                   LATERAL unnest(s.setconfig) WITH ORDINALITY u(c, pos)
                   WHERE s.setdatabase = d.oid ORDER BY coalesce(r.rolname::text, ''), u.pos)
        FROM pg_catalog.pg_database d WHERE d.datname = %s
        """,
        (database,),
    ).fetchone()
    if row is None:
        raise UsageError(f"there is no database {database!r}", hint="Correct the name.")
    owner, connection_limit, comment, is_template, has_grants, grants, parameters = row
    return DatabaseSettings(
        owner=owner,
        grants=tuple(Grant(role, privilege, grantable == "true") for role, privilege, grantable in grants)
        if has_grants
        else None,
        connection_limit=connection_limit,
        comment=comment,
        is_template=is_template,
        parameters=tuple((role, name, value) for role, name, value in parameters),
    )


def split_name_list(value: str) -> list[str]:
    """Split a stored list of names such as ``"$user", public``.

    Args:
        value: The text in pg_db_role_setting.

    Returns:
        The names without quotes.
    """
    names: list[str] = []
    position = 0
    while position < len(value):
        if value[position] in ", \t\n":
            position += 1
        elif value[position] == '"':
            name, position = _quoted(value, position + 1)
            names.append(name)
        else:
            end = position
            while end < len(value) and value[end] != ",":
                end += 1
            names.append(value[position:end].strip())
            position = end
    return names or [""]


def _quoted(value: str, start: int) -> tuple[str, int]:
    letters: list[str] = []
    position = start
    while position < len(value):
        if value[position] != '"':
            letters.append(value[position])
        elif value[position + 1 : position + 2] == '"':
            letters.append('"')
            position += 1
        else:
            return "".join(letters), position + 1
        position += 1
    return "".join(letters), position


def _parameter_name(parameter: str) -> sql.Composable:
    return sql.SQL(".").join(sql.Identifier(part) for part in parameter.split("."))


def _parameter_value(parameter: str, value: str) -> sql.Composable:
    if parameter.lower() in _NAME_LISTS:
        return sql.SQL(", ").join(sql.Literal(name) for name in split_name_list(value))
    return sql.Literal(value)


def settings_statements(settings: DatabaseSettings, database: str) -> list[sql.Composed]:
    """Write the statements that give settings to a database, the comment left to the swap.

    Args:
        settings: What to give.
        database: To which database.

    Returns:
        Statements in the order to run them.
    """
    name = sql.Identifier(database)
    statements: list[sql.Composed] = []
    if settings.grants is not None:
        revoke = "REVOKE ALL ON DATABASE {} FROM PUBLIC, {}"
        statements.append(sql.SQL(revoke).format(name, sql.Identifier(settings.owner)))
        statements += [_grant(grant, name) for grant in settings.grants if grant.privilege in _PRIVILEGES]
    for role, parameter, value in settings.parameters:
        what = sql.SQL("SET {} TO {}").format(_parameter_name(parameter), _parameter_value(parameter, value))
        if role:
            statement = sql.SQL("ALTER ROLE {} IN DATABASE {} {}").format(sql.Identifier(role), name, what)
        else:
            statement = sql.SQL("ALTER DATABASE {} {}").format(name, what)
        statements.append(statement)
    if settings.connection_limit != -1:
        limit = sql.SQL(str(int(settings.connection_limit)))
        statements.append(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(name, limit))
    return statements


def _grant(grant: Grant, name: sql.Identifier) -> sql.Composed:
    grantee = sql.Identifier(grant.grantee) if grant.grantee else sql.SQL("PUBLIC")
    option = sql.SQL(" WITH GRANT OPTION" if grant.grantable else "")
    return sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(sql.SQL(grant.privilege), name, grantee, option)


def copy_settings(connection: Connection, source: str, target: str) -> None:
    """Give a database the owner, grants, limit and parameters of another, all or none.

    The comment goes with the swap, since until then it is the mark that the
    target is ours. Privileges that somebody else than the owner granted are
    granted by the owner.

    Args:
        connection: Any database of the server.
        source: The database that has them.
        target: The database that gets them.

    Raises:
        UnsafeRestoreError: The role may not set one of them.
        ConnectError: The connection was lost; nothing was set.
    """
    statement: sql.Composed | None = None
    try:
        settings = database_settings(connection, source)
        with connection.transaction():
            if database_settings(connection, target).owner != settings.owner:
                statement = sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                    sql.Identifier(target), sql.Identifier(settings.owner)
                )
                connection.execute(statement)
            for statement in settings_statements(settings, target):
                connection.execute(statement)
    except psycopg.Error as error:
        if connection.closed:
            raise translate(error, doing="copying the settings of a database") from error
        text = statement.as_string(connection) if statement is not None else "reading the settings"
        raise UnsafeRestoreError(
            f"the settings of database {source!r} cannot be copied",
            found=f"{text}\nServer: {error.diag.message_primary or error}",
        ) from error


def uncopyable_settings(connection: Connection, database: str) -> list[str]:
    """Name the settings that our role could not give to another database.

    Args:
        connection: Any database of the server.
        database: The database that has them.

    Returns:
        Reasons, empty if all can be copied.
    """
    settings = database_settings(connection, database)
    row = connection.execute(
        "SELECT r.rolsuper, pg_catalog.pg_has_role(%s, 'USAGE'), current_user FROM pg_catalog.pg_roles r "
        "WHERE r.rolname = current_user",
        (settings.owner,),
    ).fetchone()
    if row is None or row[0]:
        return []
    reasons: list[str] = []
    denied = _denied_parameters(connection, [parameter for _, parameter, _ in settings.parameters])
    for role, parameter, _ in settings.parameters:
        if parameter in denied:
            reasons.append(f"the database sets {parameter}, which only a superuser may copy")
        elif role and role != row[2] and not _may_alter_role(connection, role):
            reasons.append(f"role {role} has {parameter} set for this database, which this role may not copy")
    return reasons


def _denied_parameters(connection: Connection, parameters: list[str]) -> set[str]:
    rows = connection.execute(
        "SELECT s.name FROM pg_catalog.pg_settings s WHERE s.name = ANY (%s) AND s.context = 'superuser' "
        "AND NOT pg_catalog.has_parameter_privilege(s.name, 'SET')",
        ([parameter.lower() for parameter in parameters],),
    ).fetchall()
    denied = {row[0] for row in rows}
    return {parameter for parameter in parameters if parameter.lower() in denied}


def _may_alter_role(connection: Connection, role: str) -> bool:
    """Whether our role, no superuser, may ALTER ROLE another: CREATEROLE, and since 16 its admin option."""
    row = connection.execute(
        """
        SELECT me.rolcreaterole AND NOT other.rolsuper
           AND (pg_catalog.current_setting('server_version_num')::int < 160000 OR EXISTS (
                SELECT 1 FROM pg_catalog.pg_auth_members m
                WHERE m.roleid = other.oid AND m.member = me.oid AND m.admin_option))
        FROM pg_catalog.pg_roles me, pg_catalog.pg_roles other
        WHERE me.rolname = current_user AND other.rolname = %s
        """,
        (role,),
    ).fetchone()
    return bool(row and row[0])
