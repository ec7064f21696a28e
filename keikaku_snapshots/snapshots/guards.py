"""What must hold before a database is replaced; nothing here changes anything."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    AccessDeniedError,
    OtherDatabaseError,
    ProtectedDatabaseError,
    SchemaDriftError,
    UnsafeRestoreError,
)
from keikaku_snapshots.postgres.databases import obstacles_to_writing
from keikaku_snapshots.postgres.filters import USER_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keikaku_snapshots.postgres.catalog import Fingerprint
    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.manifest import Manifest

#: Whole words in a name that mean production (B15).
PROTECTED_WORDS = ("prod", "production", "live")
#: Lines of a difference that an error or warning shows.
_SHOWN = 20


def check_protected(
    url: DatabaseURL,
    *,
    allow_protected: bool,
    protected_words: Sequence[str] = PROTECTED_WORDS,
    allowed_databases: Sequence[str] = (),
) -> None:
    """Refuse a database that looks like production, or that is not on the list.

    Args:
        url: The target.
        allow_protected: Skip the protected words; the list still holds.
        protected_words: Whole words of database and host names.
        allowed_databases: Patterns such as ``*_test``; empty allows all.

    Raises:
        ProtectedDatabaseError: It is refused.
    """
    word = None if allow_protected else url.protected_word(protected_words)
    if word is not None:
        raise ProtectedDatabaseError(
            f"the database looks like production (protected word {word!r})", found=f"Database: {url.location}"
        )
    if allowed_databases and not any(
        fnmatch.fnmatchcase(url.database, pattern) for pattern in allowed_databases
    ):
        raise ProtectedDatabaseError(
            f"the database {url.database!r} is not among those that may be replaced",
            found=f"Database: {url.location}\nallowed_databases: {', '.join(allowed_databases)}",
            hint="Correct the URL, or add the database to allowed_databases.",
        )


def same_application(snapshot_tables: Collection[str], tables: Collection[str]) -> bool:
    """Tell whether at least half of a snapshot's tables are among a database's, or it has none."""
    if not tables:
        return True
    shared = len(set(snapshot_tables) & set(tables))
    return shared * 2 >= len(set(snapshot_tables))


def check_identity(manifest: Manifest, tables: Collection[str], url: DatabaseURL, *, allowed: bool) -> None:
    """Refuse a database that holds another application's tables (B15).

    Args:
        manifest: The snapshot.
        tables: Tables of the target, ``schema.table``.
        url: The target.
        allowed: True when that is meant.

    Raises:
        OtherDatabaseError: Fewer than half of the snapshot's tables are there.
    """
    # A snapshot without tables says nothing of its application, and would empty any database.
    is_ours = bool(manifest.row_counts or not tables) and same_application(manifest.row_counts, tables)
    if allowed or is_ours:
        return
    only_here = sorted(set(tables) - set(manifest.row_counts))
    raise OtherDatabaseError(
        f"the database {url.database!r} holds another application's tables",
        found=f"Snapshot {manifest.name} {manifest.version} was made of "
        f"{manifest.database!r}: {_some(manifest.row_counts) or 'no tables'}\n"
        f"Database {url.location}: {_some(only_here)}",
    )


def check_create_identity(
    name: str, earlier: Manifest | None, tables: Collection[str], url: DatabaseURL
) -> None:
    """Refuse a name that another application's snapshots have (B15).

    Args:
        name: The snapshot's name.
        earlier: The newest snapshot of that name.
        tables: Tables of the database, ``schema.table``.
        url: The database.

    Raises:
        OtherDatabaseError: The name belongs to snapshots of other tables.
    """
    if (
        earlier is None
        or not earlier.row_counts
        or not tables
        or same_application(earlier.row_counts, tables)
    ):
        return
    raise OtherDatabaseError(
        f"the name {name!r} belongs to snapshots of another application",
        found=f"Snapshot {earlier.name} {earlier.version} was made of "
        f"{earlier.database!r}: {_some(earlier.row_counts)}\n"
        f"Database {url.location}: {_some(tables)}",
        hint="Use another name, or another snapshot_dir.",
    )


def check_writing(connection: Connection, url: DatabaseURL, encoding: str) -> None:
    """Refuse a target that cannot take the snapshot at all (FAULTS 73).

    Args:
        connection: The target.
        url: Its URL.
        encoding: Encoding of the snapshot.

    Raises:
        AccessDeniedError: It is read-only.
        UnsafeRestoreError: Its encoding has not all characters of the snapshot's.
    """
    reasons = obstacles_to_writing(connection)
    if reasons:
        raise AccessDeniedError(
            f"the database {url.database!r} takes no changes",
            found="\n".join([*reasons, f"Database: {url.location}"]),
            hint="Use the primary server, and: ALTER DATABASE … SET default_transaction_read_only = off.",
        )
    if encoding and encoding != "UTF8":
        return  # UTF8 takes everything; the server converts the rest and says so when it cannot
    reasons = obstacles_to_writing(connection, encoding=encoding or None)
    if reasons:
        raise UnsafeRestoreError(
            f"the database {url.database!r} cannot hold every character of the snapshot",
            found="\n".join([*reasons, f"Database: {url.location}"]),
            hint="Restore into a database with ENCODING 'UTF8'.",
        )


def check_row_security(connection: Connection, url: DatabaseURL) -> None:
    """Refuse to dump tables whose rows are hidden from the role, before pg_dump does (FAULTS 18).

    Args:
        connection: The database.
        url: Its URL.

    Raises:
        AccessDeniedError: Row security holds for the role.
    """
    rows = connection.execute(
        "SELECT c.oid::pg_catalog.regclass::text, c.relforcerowsecurity"  # noqa: S608 - constants
        " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.relrowsecurity AND c.relkind IN ('r', 'p') AND {USER_SCHEMA}"
        " AND pg_catalog.row_security_active(c.oid) ORDER BY c.oid"
    ).fetchall()
    if not rows:
        return
    names = [name if "." in name else f"public.{name}" for name, _ in rows]
    forced = [name for name, (_, is_forced) in zip(names, rows, strict=True) if is_forced]
    hint = "Use a superuser or a role with BYPASSRLS (ALTER ROLE … BYPASSRLS)"
    if forced:
        hint += f"; or, as the owner: ALTER TABLE {forced[0]} NO FORCE ROW LEVEL SECURITY"
    raise AccessDeniedError(
        f"row security hides rows from role {url.user!r}, so a snapshot would not be complete",
        found=f"{_some(names)}\nDatabase: {url.location}",
        hint=f"{hint}.",
        tables=names,
    )


def drift(manifest: Manifest, now: Fingerprint, heads: Sequence[str]) -> list[str]:
    """Say how the schema of a database differs from the snapshot's.

    Args:
        manifest: The snapshot.
        now: The database's schema.
        heads: The database's Alembic revisions.

    Returns:
        Lines; empty when they agree or the database is empty.
    """
    # Not at the top: a warm restore, which starts in a tenth of a second, seldom compares anything.
    from keikaku_snapshots.postgres.catalog import Fingerprint, difference

    is_empty = all(key.startswith(("schema ", "extension ")) for key in now.objects)
    if is_empty or not manifest.schema_fingerprint:
        return []
    lines: list[str] = []
    if list(heads) != manifest.alembic_heads and (heads or manifest.alembic_heads):
        lines.append(
            f"Alembic revision: {', '.join(manifest.alembic_heads) or 'none'} in the snapshot, "
            f"{', '.join(heads) or 'none'} in the database"
        )
    before = Fingerprint(manifest.schema_fingerprint, manifest.server_major, manifest.schema_objects)
    if not before.same_schema(now):
        lines += difference(manifest.schema_objects, now.objects)
    return lines


def check_drift(manifest: Manifest, lines: Sequence[str], on_mismatch: str) -> list[str]:
    """Answer a difference as the caller asked (B7).

    Args:
        manifest: The snapshot.
        lines: What differs.
        on_mismatch: ``warn``, ``error`` or ``ignore``.

    Returns:
        Warnings.

    Raises:
        SchemaDriftError: It differs, and ``error`` was asked for.
    """
    return answer_drift(f"snapshot {manifest.name} {manifest.version}", lines, on_mismatch)


def answer_drift(what: str, lines: Sequence[str], on_mismatch: str) -> list[str]:
    """Answer a difference as the caller asked, for a snapshot with or without manifest.

    Args:
        what: The snapshot, in words.
        lines: What differs.
        on_mismatch: ``warn``, ``error`` or ``ignore``.

    Returns:
        Warnings.

    Raises:
        SchemaDriftError: It differs, and ``error`` was asked for.
    """
    if not lines or on_mismatch == "ignore":
        return []
    shown = [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
    if on_mismatch == "error":
        raise SchemaDriftError(
            f"{what} was made for another schema",
            found="\n".join(shown),
            differences=list(lines),
        )
    return [f"schema was not the snapshot's ({SchemaDriftError.term}): {'; '.join(shown)}"]


def records_of_patches(connection: Connection) -> list[str]:
    """Say whether the target holds what no snapshot holds: the records of patches that ran on it.

    Args:
        connection: The target.

    Returns:
        A reason against a swap, or nothing.
    """
    row = connection.execute(
        "SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'keikaku_patches' AND c.relkind IN ('r', 'p')"
    ).fetchone()
    return ["schema keikaku_patches is not part of any snapshot"] if row and row[0] else []


def missing_extensions(connection: Connection, manifest: Manifest, *, fresh: bool) -> list[str]:
    """Say which extensions of a snapshot could not be made (FAULTS 71).

    Args:
        connection: The target.
        manifest: The snapshot.
        fresh: True for a new database, which has none yet.

    Returns:
        Reasons, empty when nothing is in the way.
    """
    if not manifest.extensions:
        return []
    from keikaku_snapshots.postgres.catalog import extensions

    there = set() if fresh else {extension.name for extension in extensions(connection)}
    wanted = [str(item["name"]) for item in manifest.extensions if item["name"] not in there]
    if not wanted:
        return []
    rows = connection.execute(
        "SELECT v.name::text, bool_or(v.trusted OR NOT v.superuser)"
        " FROM pg_catalog.pg_available_extension_versions v WHERE v.name = ANY(%s) GROUP BY v.name",
        [wanted],
    ).fetchall()
    makeable: Mapping[str, bool] = {row[0]: bool(row[1]) for row in rows}
    superuser = connection.info.parameter_status("is_superuser") == "on"
    reasons = []
    for name in wanted:
        if name not in makeable:
            reasons.append(f"extension {name} is not installed on the server")
        elif not superuser and not makeable[name]:
            reasons.append(f"extension {name} can only be created by a superuser")
    return reasons


def _some(tables: Collection[str]) -> str:
    names = sorted(tables)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
