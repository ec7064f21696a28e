"""What the two ways of making a snapshot, a dump and test rows, have in common."""

from __future__ import annotations

import getpass
import os
import platform

from keikaku_snapshots.errors import ConnectError
from keikaku_snapshots.postgres.connect import is_transient
from keikaku_snapshots.postgres.rewrites import were_rewritten


def is_worth_another_try(error: BaseException) -> bool:
    """Tell whether the connection was lost, or a table was rewritten meanwhile: reading can begin again.

    Args:
        error: What ended the attempt.
    """
    return were_rewritten(error) or (isinstance(error, ConnectError) and is_transient(error))


def created_by() -> dict[str, str]:
    """Return who makes a snapshot, and where, for its manifest."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # an account without a name, as containers have
    return {"user": user, "host": platform.node()}
