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
        "SELECT rolname::text, pg_has_role(current_user, oid, 'USAGE'), rolsuper, rolname = current_user"
        " FROM pg_roles WHERE rolname = ANY(%s) OR rolname = current_user",
        [wanted],
    ).fetchall()
    asked = [row for row in rows if row[0] in wanted]
    return RoleRights(
        missing=frozenset(wanted) - {row[0] for row in asked},
        unreachable=frozenset(row[0] for row in asked if not row[1]),
        superusers=frozenset(row[0] for row in asked if row[2]),
        is_superuser=any(row[2] for row in rows if row[3]),
    )
