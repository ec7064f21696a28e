"""Drop everything that the user made in a database, inside one transaction (docs/design.md, In place).

Schema by schema where nothing in it belongs to an extension, else object by
object: dropping such a schema would take the extension along, which its
database's owner may not be able to make again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from keikaku_snapshots.postgres.filters import USER_SCHEMA, not_extension_member

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.snapshots.manifest import Manifest


@dataclass(frozen=True, slots=True)
class _Catalog:
    """A catalog whose objects people make."""

    #: Name of the catalog.
    name: str
    #: Column with the owner; empty where objects have none.
    owner: str
    #: Column with the schema; empty for objects outside schemas.
    schema: str
    #: Which rows are objects on their own.
    condition: str = "true"


#: In the order of dropping: what others are built on comes last.
_CATALOGS = (
    _Catalog("pg_event_trigger", "evtowner", ""),
    _Catalog("pg_publication", "pubowner", ""),
    _Catalog("pg_cast", "", "", "x.oid >= 16384"),
    _Catalog("pg_foreign_server", "srvowner", ""),
    _Catalog("pg_foreign_data_wrapper", "fdwowner", ""),
    _Catalog("pg_namespace", "nspowner", "oid", "x.nspname <> 'public'"),
    _Catalog("pg_class", "relowner", "relnamespace", "x.relkind IN ('v', 'm')"),
    _Catalog("pg_class", "relowner", "relnamespace", "x.relkind IN ('r', 'p', 'f')"),
    _Catalog("pg_class", "relowner", "relnamespace", "x.relkind = 'S'"),
    _Catalog("pg_statistic_ext", "stxowner", "stxnamespace"),
    _Catalog("pg_opclass", "opcowner", "opcnamespace"),
    _Catalog("pg_opfamily", "opfowner", "opfnamespace"),
    _Catalog("pg_operator", "oprowner", "oprnamespace"),
    _Catalog("pg_proc", "proowner", "pronamespace"),
    _Catalog("pg_ts_config", "cfgowner", "cfgnamespace"),
    _Catalog("pg_ts_dict", "dictowner", "dictnamespace"),
    _Catalog("pg_ts_parser", "", "prsnamespace"),
    _Catalog("pg_ts_template", "", "tmplnamespace"),
    _Catalog("pg_conversion", "conowner", "connamespace"),
    # Row types of tables and array types go with what they belong to.
    _Catalog(
        "pg_type",
        "typowner",
        "typnamespace",
        "x.typelem = 0 AND (x.typrelid = 0 OR EXISTS (SELECT 1 FROM pg_catalog.pg_class c"
        " WHERE c.oid = x.typrelid AND c.relkind = 'c')) AND x.typtype <> 'm'",
    ),
    _Catalog("pg_collation", "collowner", "collnamespace"),
    _Catalog("pg_language", "lanowner", "", "x.oid >= 16384"),
    _Catalog("pg_am", "", "", "x.oid >= 16384"),
)
#: How DROP names what `pg_identify_object` names otherwise.
_DROP_WORDS = {
    "statistics object": "STATISTICS",
    "foreign-data wrapper": "FOREIGN DATA WRAPPER",
    "operator of access method": "",
}


@dataclass(frozen=True, slots=True)
class OwnObject:
    """Something that the user made."""

    #: What it is, as the server names it, such as "materialized view".
    type: str
    #: Its name as SQL.
    identity: str
    #: Its schema, or empty.
    schema: str
    #: Its owner, or empty where objects of this type have none.
    owner: str
    #: True if the connected role may drop it.
    is_ours: bool
    #: The statement that drops it.
    drop: str


def own_objects(connection: Connection) -> list[OwnObject]:
    """List what the user made, in an order in which it can be dropped.

    Args:
        connection: The database.

    Returns:
        Objects; those of extensions and of this package are left out, as are
        objects that are a part of another one.
    """
    found: list[OwnObject] = []
    for part in _CATALOGS:
        for kind, identity, schema, owner, ours in connection.execute(_query(part)).fetchall():
            word = _DROP_WORDS.get(kind, kind.upper())
            if word:
                statement = f"DROP {word} IF EXISTS {identity} CASCADE"
                found.append(OwnObject(kind, identity, schema or "", owner or "", bool(ours), statement))
    return found


def _query(part: _Catalog) -> sql.SQL:
    schema = f"JOIN pg_catalog.pg_namespace n ON n.oid = x.{part.schema}" if part.schema else ""
    in_schema = USER_SCHEMA if part.schema else "true"
    owner = f"pg_catalog.pg_get_userbyid(x.{part.owner})::text" if part.owner else "NULL"
    ours = f"pg_catalog.pg_has_role(current_user, x.{part.owner}, 'USAGE')" if part.owner else "true"
    text = (
        f"SELECT i.type, i.identity, {'n.nspname::text' if part.schema else 'NULL'}, {owner}, {ours} "  # noqa: S608
        f"FROM pg_catalog.{part.name} x {schema} "
        f"CROSS JOIN LATERAL pg_catalog.pg_identify_object('pg_catalog.{part.name}'::regclass, x.oid, 0) i "
        f"WHERE {in_schema} AND ({part.condition}) AND x.oid >= 16384 "
        f"AND {not_extension_member(part.name, 'x.oid')} "
        f"AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d "
        f"WHERE d.classid = 'pg_catalog.{part.name}'::regclass "
        "AND d.objid = x.oid AND d.objsubid = 0 AND d.deptype IN ('i', 'I', 'P') "
        # A partition is part of its table only for dropping; the table takes it along.
        ") ORDER BY x.oid"
    )
    return sql.SQL(text)


def kept_schemas(connection: Connection) -> frozenset[str]:
    """Name the schemas that stay because something of an extension is in them, and ``public``.

    Args:
        connection: The database.

    Returns:
        Names of schemas.
    """
    rows = connection.execute(
        """
        SELECT DISTINCT n.nspname::text FROM pg_catalog.pg_namespace n
        WHERE n.nspname = 'public'
           OR EXISTS (SELECT 1 FROM pg_catalog.pg_extension e WHERE e.extnamespace = n.oid)
           OR EXISTS (
             SELECT 1 FROM pg_catalog.pg_depend s JOIN pg_catalog.pg_depend e
               ON e.classid = s.classid AND e.objid = s.objid AND e.objsubid = 0 AND e.deptype = 'e'
             WHERE s.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND s.refobjid = n.oid)
        """
    ).fetchall()
    return frozenset(row[0] for row in rows)


def drop_everything(connection: Connection, objects: list[OwnObject], kept: frozenset[str]) -> None:
    """Drop what `own_objects` found, default privileges and large objects included.

    Args:
        connection: In the transaction of the restore.
        objects: What to drop.
        kept: Schemas that stay.

    Raises:
        psycopg.Error: The role may not, or something else depends on it.
    """
    for item in objects:
        if item.type == "schema":
            if _schema_name(connection, item) not in kept:
                connection.execute(sql.SQL(item.drop))
        elif not item.schema or item.schema in kept:
            connection.execute(sql.SQL(item.drop))
    for statement in _default_privileges(connection):
        connection.execute(statement)
    connection.execute("SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata")
    _reset_public(connection)


def _schema_name(connection: Connection, item: OwnObject) -> str:
    row = connection.execute("SELECT (pg_catalog.parse_ident(%s))[1]", [item.identity]).fetchone()
    return str(row[0]) if row else ""


def _default_privileges(connection: Connection) -> list[sql.Composed]:
    """Statements that bring ALTER DEFAULT PRIVILEGES back to what a new database has."""
    rows = connection.execute(
        """
        SELECT pg_catalog.pg_get_userbyid(d.defaclrole)::text, n.nspname::text, d.defaclobjtype::text,
               ARRAY(SELECT DISTINCT CASE grantee WHEN 0 THEN NULL
                                     ELSE pg_catalog.pg_get_userbyid(grantee)::text END
                     FROM pg_catalog.aclexplode(d.defaclacl)),
               ARRAY(SELECT ARRAY[privilege_type, CASE grantee WHEN 0 THEN NULL
                                  ELSE pg_catalog.pg_get_userbyid(grantee)::text END]
                     FROM pg_catalog.aclexplode(pg_catalog.acldefault(
                       CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END, d.defaclrole))
                     WHERE d.defaclnamespace = 0)
        FROM pg_catalog.pg_default_acl d LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
        """
    ).fetchall()
    words = {
        "r": "TABLES",
        "S": "SEQUENCES",
        "f": "FUNCTIONS",
        "T": "TYPES",
        "n": "SCHEMAS",
        "L": "LARGE OBJECTS",
    }
    statements = []
    for role, schema, kind, grantees, defaults in rows:
        head = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {}").format(sql.Identifier(role))
        if schema:
            head += sql.SQL(" IN SCHEMA {}").format(sql.Identifier(schema))
        word = sql.SQL(words[kind])
        revoke = sql.SQL(" REVOKE ALL ON {} FROM {}")
        statements += [head + revoke.format(word, _grantee(grantee)) for grantee in grantees]
        for privilege, grantee in defaults:
            verb = sql.SQL(privilege)
            statements.append(head + sql.SQL(" GRANT {} ON {} TO {}").format(verb, word, _grantee(grantee)))
    return statements


def _grantee(name: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if name is None else sql.Identifier(name)


def drop_public(connection: Connection, manifest: Manifest) -> None:
    """Drop ``public`` where the snapshot had none: every new database has it, and no dump says so.

    Args:
        connection: The restored database, or the transaction that restores it.
        manifest: What the snapshot held.

    Raises:
        psycopg.Error: An extension lives in it.
    """
    if manifest.schema_objects and "schema public" not in manifest.schema_objects:
        connection.execute("DROP SCHEMA IF EXISTS public")


def _reset_public(connection: Connection) -> None:
    """Give ``public`` the comment and grants of a new database, which a dump takes for granted."""
    row = connection.execute(
        """
        SELECT pg_catalog.obj_description(n.oid, 'pg_namespace'), n.nspacl::text,
               pg_catalog.pg_get_userbyid(n.nspowner),
               ARRAY(SELECT DISTINCT pg_catalog.pg_get_userbyid(grantee)::text
                     FROM pg_catalog.aclexplode(n.nspacl) WHERE grantee NOT IN (0, n.nspowner))
        FROM pg_catalog.pg_namespace n WHERE n.nspname = 'public'
        """
    ).fetchone()
    if row is None:
        # The dump takes the owner of a new database's for granted, too.
        connection.execute("CREATE SCHEMA public AUTHORIZATION pg_database_owner")
        connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        connection.execute("COMMENT ON SCHEMA public IS 'standard public schema'")
        return
    comment, acl, owner, grantees = row
    if comment != "standard public schema":
        connection.execute("COMMENT ON SCHEMA public IS 'standard public schema'")
    if acl != f"{{{owner}=UC/{owner},=U/{owner}}}":
        for grantee in grantees:
            connection.execute(sql.SQL("REVOKE ALL ON SCHEMA public FROM {}").format(sql.Identifier(grantee)))
        connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
