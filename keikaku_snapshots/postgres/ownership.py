"""Who owns the objects of a database and who may use them, as statements that give it back.

A restore runs them for every role that exists and that it may act for, and
names the rest, so that the application's role is never locked out.
"""
# ruff: noqa: E501, S608 - SQL reads better in long lines; it is put together from constants of this module

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from keikaku_snapshots.postgres.filters import not_extension_member
from keikaku_snapshots.postgres.session_settings import catalog_search_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class OwnershipStatement:
    """One statement and the roles that must exist for it."""

    #: The statement, without a semicolon.
    statement: str
    #: Roles named in it.
    roles: tuple[str, ...]
    #: The object, such as "table public.staffs".
    object: str


#: Catalogs whose objects have an owner: catalog, owner, privileges, kind for acldefault, condition.
_OWNED = (
    (
        "pg_namespace",
        "nspowner",
        "nspacl",
        "'n'",
        "o.nspname !~ '^pg_' AND o.nspname <> 'information_schema'",
    ),
    (
        "pg_class",
        "relowner",
        "relacl",
        "CASE o.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\"",
        "o.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND o.relpersistence <> 't'",
    ),
    ("pg_proc", "proowner", "proacl", "'f'", "true"),
    (
        "pg_type",
        "typowner",
        "typacl",
        "'T'",
        # Not the types of tables, arrays and multiranges: they follow.
        "o.typtype IN ('d', 'e', 'r', 'b', 'c') AND NOT (o.typelem <> 0 AND o.typlen = -1) AND (o.typrelid = 0 OR (SELECT r.relkind = 'c' FROM pg_class r WHERE r.oid = o.typrelid))",
    ),
    ("pg_collation", "collowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_statistic_ext", "stxowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_operator", "oprowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_opclass", "opcowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_opfamily", "opfowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_ts_config", "cfgowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_ts_dict", "dictowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_foreign_server", "srvowner", "srvacl", "'S'", "true"),
    ("pg_foreign_data_wrapper", "fdwowner", "fdwacl", "'F'", "true"),
    ("pg_publication", "pubowner", "NULL::aclitem[]", "'T'", "true"),
    ("pg_largeobject_metadata", "lomowner", "lomacl", "'L'", "true"),
)
#: pg_identify_object's words for a kind where the statements' are others.
_OWNER_KEYWORDS = {
    "statistics object": "STATISTICS",
    "text search configuration": "TEXT SEARCH CONFIGURATION",
    "composite type": "TYPE",
}
_GRANT_KEYWORDS = {
    "view": "TABLE",
    "materialized view": "TABLE",
    "foreign table": "TABLE",
    "aggregate": "FUNCTION",
    "composite type": "TYPE",
    "server": "FOREIGN SERVER",
    "foreign-data wrapper": "FOREIGN DATA WRAPPER",
}


#: A sequence of a column: its owner follows the table, its grants are its own.
_LINKED_SEQUENCE = """
    EXISTS (SELECT 1 FROM pg_depend q WHERE q.classid = 'pg_class'::regclass AND q.objid = o.oid
            AND q.refclassid = 'pg_class'::regclass AND q.refobjsubid > 0 AND q.deptype IN ('a', 'i'))
"""


def _acl_rows(acl: str, owner: str) -> str:
    """SQL for an array of (grantee, privilege, grantable), the owner's own first."""
    return f"""
        (SELECT array_agg(ARRAY[CASE WHEN x.grantee = 0 THEN '' ELSE pg_get_userbyid(x.grantee) END,
                                x.privilege_type, x.is_grantable::text]
                          ORDER BY x.grantee <> {owner}, x.grantee = 0, pg_get_userbyid(x.grantee), x.privilege_type)
         FROM aclexplode({acl}) x)
    """


def _objects_query(catalog: str, owner: str, acl: str, kind: str, condition: str) -> str:
    has_acl = not acl.startswith("NULL")
    acl = f"o.{acl}" if has_acl else acl
    # Large objects are registered under the catalog of their pages.
    registered = "pg_largeobject" if catalog == "pg_largeobject_metadata" else catalog
    linked = f"o.relkind = 'S' AND {_LINKED_SEQUENCE}" if catalog == "pg_class" else "false"
    changed = (
        f"{acl} IS NOT NULL AND {acl} IS DISTINCT FROM acldefault({kind}, o.{owner})" if has_acl else "false"
    )
    return f"""
    SELECT i.type, i.identity, pg_get_userbyid(o.{owner}), NOT ({linked}), {changed}, {_acl_rows(acl, "o." + owner)}
    FROM {catalog} o, LATERAL pg_identify_object('{registered}'::regclass, o.oid, 0) i
    WHERE o.oid >= 16384 AND {condition} AND {not_extension_member(registered, "o.oid")}
      AND coalesce(i.schema, '') NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
      AND coalesce(i.schema, i.name, '') NOT IN ('keikaku_patches', 'keikaku_rewind')
    ORDER BY i.type, i.identity
    """


def owners_and_grants(connection: Connection) -> list[OwnershipStatement]:
    """Write the statements that give every object its owner and privileges.

    Privileges that somebody else than the owner granted come from the owner;
    privileges on members of extensions are the extension's.

    Args:
        connection: The database.

    Returns:
        Statements in the order to run them: schemas, owners, grants, default privileges.
    """
    owners: list[OwnershipStatement] = []
    grants: list[OwnershipStatement] = []
    with catalog_search_path(connection):
        # One round trip: beside a busy pg_dump each one waits for its turn on the processor.
        with connection.pipeline():
            cursors = [connection.execute(_objects_query(*entry)) for entry in _OWNED]
        for cursor in cursors:
            for row in cursor.fetchall():
                kind, identity, owner, owner_settable, has_acl, acl = row
                name = f"{kind} {identity}"
                if owner_settable:
                    keyword = _OWNER_KEYWORDS.get(kind, kind.upper())
                    text = f"ALTER {keyword} {identity} OWNER TO {_quote(owner)}"
                    owners.append(OwnershipStatement(text, (owner,), name))
                if has_acl:
                    keyword = _GRANT_KEYWORDS.get(kind, kind.upper())
                    grants += _grants(f"{keyword} {identity}", owner, acl or [], name)
        grants += _public_schema(connection)
        grants += _column_grants(connection)
        grants += _default_privileges(connection)
    # A new owner needs CREATE on the schema, so schemas come first with all that is theirs.
    statements = owners + grants
    return sorted(statements, key=lambda one: not one.object.startswith("schema "))


def _quote(role: str) -> str:
    return '"' + role.replace('"', '""') + '"'


def _grantee(role: str) -> str:
    return _quote(role) if role else "PUBLIC"


def _grants(place: str, owner: str, acl: Iterable[list[str]], name: str) -> list[OwnershipStatement]:
    statements = [OwnershipStatement(f"REVOKE ALL ON {place} FROM PUBLIC, {_quote(owner)}", (owner,), name)]
    for grantee, option, privileges in _by_grantee(owner, acl):
        text = f"GRANT {privileges} ON {place} TO {_grantee(grantee)}{option}"
        statements.append(OwnershipStatement(text, (grantee,) if grantee else (), name))
    return statements


#: What ALL means for a table; versions from 17 on add MAINTAIN, which older ones do not know.
_ALL_ON_TABLE = {"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"}


def _by_grantee(owner: str, acl: Iterable[list[str]]) -> list[tuple[str, str, str]]:
    """Grantee, grant option and privileges in words, the owner first."""
    together: dict[tuple[str, str], list[str]] = {}
    for grantee, privilege, grantable in acl:
        option = " WITH GRANT OPTION" if grantable == "true" and grantee not in {"", owner} else ""
        together.setdefault((grantee, option), []).append(privilege)
    owners = {
        privilege
        for (grantee, _), privileges in together.items()
        if grantee == owner
        for privilege in privileges
    }
    found = []
    for (grantee, option), privileges in together.items():
        is_all = set(privileges) >= _ALL_ON_TABLE and set(privileges) >= owners
        found.append((grantee, option, "ALL" if is_all else ", ".join(privileges)))
    return found


def _public_schema(connection: Connection) -> list[OwnershipStatement]:
    """The schema that every database has: only what differs from how it was born."""
    row = connection.execute(
        f"""
        SELECT pg_get_userbyid(n.nspowner), n.nspowner <> 'pg_database_owner'::regrole,
               n.nspacl IS DISTINCT FROM p.initprivs,
               {_acl_rows("n.nspacl", "n.nspowner")}
        FROM pg_namespace n
        LEFT JOIN pg_init_privs p ON p.objoid = n.oid AND p.classoid = 'pg_namespace'::regclass
        WHERE n.nspname = 'public' AND n.oid < 16384
        """
    ).fetchone()
    if row is None:
        return []
    owner, other_owner, other_acl, acl = row
    statements = []
    if other_owner:
        text = f"ALTER SCHEMA public OWNER TO {_quote(owner)}"
        statements.append(OwnershipStatement(text, (owner,), "schema public"))
    if other_acl or other_owner:
        statements += _grants("SCHEMA public", owner, acl or [], "schema public")
    return statements


def _column_grants(connection: Connection) -> list[OwnershipStatement]:
    rows = connection.execute(
        f"""
        SELECT c.oid::regclass::text, quote_ident(a.attname),
               CASE WHEN x.grantee = 0 THEN '' ELSE pg_get_userbyid(x.grantee) END, x.privilege_type, x.is_grantable
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace,
        LATERAL aclexplode(a.attacl) x
        WHERE c.oid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped AND {not_extension_member("pg_class", "c.oid")}
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'keikaku_patches', 'keikaku_rewind')
        ORDER BY 1, 2, 3, 4
        """
    ).fetchall()
    statements = []
    for table, column, grantee, privilege, grantable in rows:
        option = " WITH GRANT OPTION" if grantable else ""
        text = f"GRANT {privilege} ({column}) ON TABLE {table} TO {_grantee(grantee)}{option}"
        statements.append(OwnershipStatement(text, (grantee,) if grantee else (), f"column {table}.{column}"))
    return statements


_DEFAULT_KINDS = {
    "r": "TABLES",
    "S": "SEQUENCES",
    "f": "FUNCTIONS",
    "T": "TYPES",
    "n": "SCHEMAS",
    "L": "LARGE OBJECTS",
}


def _default_privileges(connection: Connection) -> list[OwnershipStatement]:
    rows = connection.execute(
        f"""
        SELECT pg_get_userbyid(d.defaclrole), CASE WHEN d.defaclnamespace <> 0 THEN d.defaclnamespace::regnamespace::text END,
               d.defaclobjtype::text,
               {_acl_rows("d.defaclacl", "d.defaclrole")}
        FROM pg_default_acl d ORDER BY 1, 2 NULLS FIRST, 3
        """
    ).fetchall()
    statements = []
    for role, schema, kind, acl in rows:
        head = f"ALTER DEFAULT PRIVILEGES FOR ROLE {_quote(role)}" + (
            f" IN SCHEMA {schema}" if schema else ""
        )
        plural = _DEFAULT_KINDS[kind]
        name = f"default privileges of {role}" + (f" in {schema}" if schema else "")
        if not schema:
            # The entry for a whole database replaces the built-in default; those of schemas add to it.
            text = f"{head} REVOKE ALL ON {plural} FROM PUBLIC, {_quote(role)}"
            statements.append(OwnershipStatement(text, (role,), name))
        for grantee, option, privileges in _by_grantee(role, acl or []):
            text = f"{head} GRANT {privileges} ON {plural} TO {_grantee(grantee)}{option}"
            statements.append(OwnershipStatement(text, tuple(one for one in (role, grantee) if one), name))
    return statements


def apply_owners_and_grants(connection: Connection, statements: Iterable[OwnershipStatement]) -> list[str]:
    """Give owners and privileges back, as far as roles exist and ours may act for them.

    Args:
        connection: The database, in a transaction of the caller or in autocommit.
        statements: From `owners_and_grants` of the database as it was.

    Returns:
        One line for each role that is missing and each statement that was refused.
    """
    wanted = list(statements)
    present = {row[0] for row in connection.execute("SELECT rolname FROM pg_catalog.pg_roles").fetchall()}
    missing = sorted({role for one in wanted for role in one.roles} - present)
    warnings = [f"role {role} does not exist: its ownership and grants were left out" for role in missing]
    refused: dict[str, str] = {}
    with connection.transaction():
        for one in wanted:
            if not present.issuperset(one.roles):
                continue
            try:
                with connection.transaction():
                    connection.execute(one.statement)
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject) as error:
                refused.setdefault(one.object, f"{one.statement}: {error.diag.message_primary}")
    return warnings + [f"{name}: {text}" for name, text in refused.items()]


def roles_needed(connection: Connection, statements: Iterable[OwnershipStatement] | None = None) -> list[str]:
    """List the roles that own objects of the database, have rights on them, or stand in a policy.

    Args:
        connection: The database.
        statements: From `owners_and_grants`, when the caller has them; asked for if None.

    Returns:
        Role names, sorted.
    """
    rows = connection.execute(
        """
        SELECT DISTINCT r.rolname FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid
        WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass
          AND d.dbid = (SELECT b.oid FROM pg_catalog.pg_database b WHERE b.datname = current_database())
        """
    ).fetchall()
    # The server keeps no record for the role that initdb made; the objects name it.
    known = owners_and_grants(connection) if statements is None else statements
    owners = {role for one in known for role in one.roles}
    return sorted({row[0] for row in rows} | owners)
