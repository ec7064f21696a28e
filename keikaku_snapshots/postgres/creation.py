"""Databases are made and cloned; reasons why they cannot be are found beforehand."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from keikaku_snapshots.errors import RefusedError, UsageError
from keikaku_snapshots.postgres.connect import open_again, translated
from keikaku_snapshots.postgres.identity import Identity, Kind
from keikaku_snapshots.postgres.settings import database_settings
from keikaku_snapshots.postgres.together import execute_together
from keikaku_snapshots.postgres.url import check_database_name

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from keikaku_snapshots.postgres.connect import Connection

#: pg_database.datlocprovider in words.
_PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}


@dataclass(frozen=True, slots=True)
class LocaleOptions:
    """What CREATE DATABASE must say to make a database that sorts like another."""

    #: Encoding, such as "UTF8".
    encoding: str
    #: "libc", "icu" or "builtin".
    provider: str
    #: LC_COLLATE.
    collate: str
    #: LC_CTYPE.
    ctype: str
    #: Locale of the icu or builtin provider.
    locale: str | None
    #: Tailoring rules of the icu provider.
    icu_rules: str | None
    #: Tablespace.
    tablespace: str

    @property
    def text(self) -> str:
        """For messages and manifests: provider and locale."""
        return f"{self.encoding}, {self.provider}: {self.locale or self.collate}"


def locale_options(connection: Connection, database: str) -> LocaleOptions:
    """Read encoding, locale and tablespace of a database.

    Args:
        connection: Any database of the server.
        database: The database.

    Returns:
        What CREATE DATABASE must say.

    Raises:
        UsageError: There is no such database.
    """
    version = connection.info.server_version
    # 15: daticulocale; 16: and daticurules; 17 renamed the first, which the builtin provider uses too.
    locale = "d.datlocale" if version >= 170_000 else "d.daticulocale"
    rules = "d.daticurules" if version >= 160_000 else "NULL"
    row = connection.execute(
        f"""
        SELECT pg_catalog.pg_encoding_to_char(d.encoding), d.datlocprovider::text, d.datcollate, d.datctype,
               {locale}, {rules}, t.spcname
        FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace
        WHERE d.datname = %s
        """,  # noqa: S608 - column names of the server's version
        (database,),
    ).fetchone()
    if row is None:
        raise UsageError(f"there is no database {database!r}", hint="Correct the name, or create it.")
    return LocaleOptions(row[0], _PROVIDERS.get(row[1], "libc"), *row[2:])


def _create_statement(
    name: str, template: str, locale: LocaleOptions | None, owner: str | None, tablespace: str | None
) -> sql.Composed:
    parts = [sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))]
    if owner is not None:
        parts.append(sql.SQL("OWNER {}").format(sql.Identifier(owner)))
    if tablespace is not None:
        parts.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)))
    if locale is not None:
        parts.append(sql.SQL("ENCODING {}").format(sql.Literal(locale.encoding)))
        parts.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(locale.provider)))
        parts.append(sql.SQL("LC_COLLATE {}").format(sql.Literal(locale.collate)))
        parts.append(sql.SQL("LC_CTYPE {}").format(sql.Literal(locale.ctype)))
        if locale.provider == "icu":
            parts.append(sql.SQL("ICU_LOCALE {}").format(sql.Literal(locale.locale)))
            if locale.icu_rules:
                parts.append(sql.SQL("ICU_RULES {}").format(sql.Literal(locale.icu_rules)))
        elif locale.provider == "builtin":
            parts.append(sql.SQL("BUILTIN_LOCALE {}").format(sql.Literal(locale.locale)))
    return sql.SQL(" ").join(parts)


def create_scratch(
    connection: Connection,
    name: str,
    *,
    like: str,
    kind: Kind = "new",
    backend_pid: int | None = None,
    extra: dict[str, object] | None = None,
) -> Identity:
    """Make an empty database of ours that sorts and encodes like another.

    Args:
        connection: The maintenance database, in autocommit.
        name: Its name, from `sibling_name`.
        like: The target: encoding, locale, provider, tablespace and owner are taken from it.
        kind: Its role.
        backend_pid: Server process of the session that holds the target's lock.
        extra: What else its mark should say.

    Returns:
        Its mark.

    Raises:
        AccessDeniedError: The role may not create databases.
        DiskFullError: The server's disk is full.
    """
    identity = Identity(kind=kind, target=like, backend_pid=backend_pid, extra=extra or {})
    locale = locale_options(connection, like)
    owner = database_settings(connection, like).owner
    # Naming the default one needs a right that only superusers have; leaving it out does not.
    tablespace = None if locale.tablespace == "pg_default" else locale.tablespace
    _create(connection, _create_statement(name, "template0", locale, owner, tablespace), name, identity)
    return identity


def clone(
    connection: Connection,
    template: str,
    name: str,
    *,
    target: str,
    kind: Kind = "new",
    backend_pid: int | None = None,
    extra: dict[str, object] | None = None,
    options: sql.Composable | None = None,
) -> Identity:
    """Make a copy of a database in which nobody is.

    Args:
        connection: The maintenance database, in autocommit.
        template: The database to copy.
        name: Name of the copy, from `sibling_name`.
        target: The database it is for.
        kind: Its role.
        backend_pid: Server process of the session that holds the target's lock.
        extra: What else its mark should say.
        options: More for CREATE DATABASE, such as its strategy.

    Returns:
        Its mark.

    Raises:
        RefusedError: The template's collation version differs from the server's (FAULTS 76).
        DatabaseInUseError: Somebody is in the template.
    """
    mismatch = collation_mismatch(connection, template)
    if mismatch:
        raise RefusedError(
            f"database {template!r} cannot be cloned",
            found=mismatch,
            hint="Restore from the snapshot's file; a database that is made anew has the right version.",
        )
    identity = Identity(kind=kind, target=target, backend_pid=backend_pid, extra=extra or {})
    owner = database_settings(connection, template).owner
    statement = _create_statement(name, template, None, owner, None)
    if options is not None:
        statement = sql.SQL("{} {}").format(statement, options)
    _create(connection, statement, name, identity)
    return identity


def _create(connection: Connection, statement: sql.Composed, name: str, identity: Identity) -> None:
    check_database_name(name)
    comment = comment_statement(name, identity.to_comment())
    same = make_conninfo(connection.info.dsn, password=connection.info.password)
    done: list[PGresult] = []
    with translated(doing=f"creating database {name}"):
        try:
            execute_together(connection, [statement, comment], done)
        except psycopg.OperationalError:
            # The first was answered, so the database is the one that we made, and not another of that name.
            if len(done) == 1:
                _mark_late(same, comment)
            raise


def _mark_late(conninfo: str, comment: sql.Composed) -> None:
    """Mark a database whose session was ended after it was made and before it was marked.

    Where the server itself is gone this fails, and `doctor` names the database.
    """
    with suppress(psycopg.Error), open_again(conninfo) as again:
        again.execute(comment)


def comment_statement(name: str, comment: str | None) -> sql.Composed:
    """Make the statement that puts a comment on a database, or takes it away."""
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(comment))


def database_exists(connection: Connection, name: str) -> bool:
    """Tell whether a database of this name is there.

    Args:
        connection: Any database of the server.
        name: The name.

    Returns:
        True if it is.
    """
    return (
        connection.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (name,)).fetchone()
        is not None
    )


def collation_mismatch(connection: Connection, database: str) -> str | None:
    """Say how a database's recorded collation version differs from the operating system's.

    Args:
        connection: Any database of the server.
        database: The database.

    Returns:
        The reason why it cannot be a template, or None.
    """
    row = connection.execute(
        "SELECT d.datcollversion, pg_catalog.pg_database_collation_actual_version(d.oid) "
        "FROM pg_catalog.pg_database d WHERE d.datname = %s",
        (database,),
    ).fetchone()
    if row is None or row[0] is None or row[0] == row[1]:
        return None
    return (
        f"Its collation version is {row[0]}, the server's libraries have {row[1]}: "
        "indexes on text may be in another order."
    )
