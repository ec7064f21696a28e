"""Functions in the database that tell within half a millisecond whether somebody changed the schema.

Event triggers need a superuser; this needs nothing. Asked first are the
versions of the catalog's rows, and only when one changed their contents.
"""
# ruff: noqa: E501, S608 - SQL is put together from names that are quoted and constants of this package

from __future__ import annotations

from keikaku_snapshots.postgres.capture import CaptureNames, literal
from keikaku_snapshots.postgres.catalog_hashes import contents_query, versions_query


def ddl_functions(names: CaptureNames) -> str:
    """Make the functions that answer the hashes, and whether they differ from those in the table ``state``.

    Our own triggers on the user's tables are part of them.

    Args:
        names: Names of the capture.

    Returns:
        SQL.
    """
    schema = names.schema
    # The versions are read before the contents: what is committed in between is seen again the next time.
    changed = (
        f"DECLARE\n  seen bigint := {schema}.ddl_versions();\nBEGIN\n"
        f"IF seen = (SELECT versions FROM {schema}.state) THEN RETURN false; END IF;\n"
        f"IF {schema}.ddl_hash() IS DISTINCT FROM (SELECT ddl FROM {schema}.state) THEN RETURN true; END IF;\n"
        f"UPDATE {schema}.state SET versions = seen;\nRETURN false;\nEND"
    )
    made = {
        "ddl_versions": ("bigint", f"BEGIN RETURN ({versions_query()}); END"),
        "ddl_hash": ("bigint", f"BEGIN RETURN ({contents_query()}); END"),
        "ddl_changed": ("boolean", changed),
    }
    return "".join(
        f"CREATE FUNCTION {schema}.{name}() RETURNS {returns} LANGUAGE plpgsql AS {literal(body)};\n"
        for name, (returns, body) in made.items()
    )
