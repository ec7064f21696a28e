"""Which objects of a database count as the user's: SQL conditions that several modules share."""

from __future__ import annotations

#: Schemas that this package makes in a user's database.
OUR_SCHEMAS = ("keikaku_patches", "keikaku_rewind")

#: Condition on pg_namespace ``n``: a schema of the user.
USER_SCHEMA = (
    "n.nspname NOT IN ('pg_catalog', 'information_schema', 'keikaku_patches', 'keikaku_rewind') "
    "AND n.nspname !~ '^pg_(toast|temp_)'"
)


def not_extension_member(catalog: str, oid: str) -> str:
    """Make the condition that an object was not made by CREATE EXTENSION.

    Args:
        catalog: Catalog of the object, such as "pg_class".
        oid: SQL expression of its oid.

    Returns:
        A condition to put behind AND.
    """
    return (
        "NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend ext "  # noqa: S608 - constants of this package
        f"WHERE ext.classid = 'pg_catalog.{catalog}'::pg_catalog.regclass "
        f"AND ext.objid = {oid} AND ext.objsubid = 0 AND ext.deptype = 'e')"
    )
