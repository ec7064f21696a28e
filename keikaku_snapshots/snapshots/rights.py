"""Which of a snapshot's roles the connected role can serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.postgres.connect import Connection


@dataclass(frozen=True, slots=True)
class RoleRights:
    """Which roles of a snapshot the restoring role can serve."""

    #: Roles that the server does not have.
    missing: frozenset[str] = frozenset()
    #: Roles that exist, but that the restoring role may not act for.
    unreachable: frozenset[str] = frozenset()
    #: Roles among the unreachable that need no grant because they may do everything.
    superusers: frozenset[str] = frozenset()
    #: True when the restoring role may do everything.
    is_superuser: bool = False


def role_rights(connection: Connection, roles: Iterable[str]) -> RoleRights:
    """Ask which of these roles exist and which the connected role may act for.

    Args:
        connection: Any connection to the server.
        roles: Names of roles.

    Returns:
        The answer.
    """
    wanted = sorted(set(roles) - {"PUBLIC", "public", ""})
    rows = connection.execute(
        "SELECT rolname::text, pg_has_role(current_user, oid, 'USAGE'), rolsuper FROM pg_roles"
        " WHERE rolname = ANY(%s)",
        [wanted],
    ).fetchall()
    found = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    return RoleRights(
        missing=frozenset(wanted) - {row[0] for row in rows},
        unreachable=frozenset(row[0] for row in rows if not row[1]),
        superusers=frozenset(row[0] for row in rows if row[2]),
        is_superuser=bool(found and found[0]),
    )
