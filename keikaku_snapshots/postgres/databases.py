"""Databases beside the target: the one module to import for them.

Made in `creation`, copied in `cloning`, dropped in `dropping`, marked in `identity`, found
again in `leftovers`, locked in `locks`, exchanged in `swap`; what stands in the way is in
`obstacles`, a database's own settings are in `settings`, those who are inside in
`sessions`.
"""

from __future__ import annotations

from keikaku_snapshots.postgres.cloning import (
    FILE_COPY_BYTES,
    CloneMethod,
    become,
    clone_method,
    clones_in_flight,
    leave_clone_to_server,
)
from keikaku_snapshots.postgres.creation import (
    LocaleOptions,
    clone,
    collation_mismatch,
    create_scratch,
    database_exists,
    locale_options,
)
from keikaku_snapshots.postgres.dropping import drop, drop_quietly, leave_to_server
from keikaku_snapshots.postgres.identity import Identity, Kind, lock_key, sibling_name
from keikaku_snapshots.postgres.leftovers import Leftover, leftovers, our_databases, sweep, unmarked
from keikaku_snapshots.postgres.locks import (
    MAINTENANCE_DATABASE,
    TargetLock,
    connect_maintenance,
    holder_of,
    target_lock,
    try_lock,
    unlock,
)
from keikaku_snapshots.postgres.obstacles import obstacles_to_create, obstacles_to_swap, obstacles_to_writing
from keikaku_snapshots.postgres.session_ahead import SessionAhead
from keikaku_snapshots.postgres.sessions import (
    Session,
    lock_holders,
    sessions_ever,
    sessions_in,
    terminate,
    terminate_once,
)
from keikaku_snapshots.postgres.settings import (
    DatabaseSettings,
    copy_settings,
    database_settings,
    uncopyable_settings,
)
from keikaku_snapshots.postgres.swap import Swapped, renaming_session, swap_by_rename
from keikaku_snapshots.postgres.together import WorkLeftToServer

__all__ = [
    "FILE_COPY_BYTES",
    "MAINTENANCE_DATABASE",
    "CloneMethod",
    "DatabaseSettings",
    "Identity",
    "Kind",
    "Leftover",
    "LocaleOptions",
    "Session",
    "SessionAhead",
    "Swapped",
    "TargetLock",
    "WorkLeftToServer",
    "become",
    "clone",
    "clone_method",
    "clones_in_flight",
    "collation_mismatch",
    "connect_maintenance",
    "copy_settings",
    "create_scratch",
    "database_exists",
    "database_settings",
    "drop",
    "drop_quietly",
    "holder_of",
    "leave_clone_to_server",
    "leave_to_server",
    "leftovers",
    "locale_options",
    "lock_holders",
    "lock_key",
    "obstacles_to_create",
    "obstacles_to_swap",
    "obstacles_to_writing",
    "our_databases",
    "renaming_session",
    "sessions_ever",
    "sessions_in",
    "sibling_name",
    "swap_by_rename",
    "sweep",
    "target_lock",
    "terminate",
    "terminate_once",
    "try_lock",
    "uncopyable_settings",
    "unlock",
    "unmarked",
]
