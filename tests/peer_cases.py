"""What users of other tools ask for in public threads, and what this one shows.

Tests name an ask by its number ("PEERS 16"). `docs/reference/peers.md` is made from this list and from the
docstrings of the tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from tests.fault_cases import naming_tests

if TYPE_CHECKING:
    from pathlib import Path

#: Number: what they ask (where) -> what is shown here.
ASKS: dict[int, str] = {
    1: "A failed restore must not lose the live database (stellar 33, 57; testcontainers-go 3233)"
    " -> whatever fails or is killed, the old database answers",
    2: "A failed snapshot must not destroy the previous one (steampipe 4816)"
    " -> on a full disk or after kill -9 the old file and `latest` are as they were",
    3: "No cut file that looks valid (autopostgresqlbackup 2)"
    " -> what is killed publishes nothing, a cut file is refused",
    4: "A restore must not claim success on SQL errors (django-dbbackup 211, Replibyte 211)"
    " -> it fails and says the error",
    5: "“is being accessed by other users” (stellar 69, 77; testcontainers-go 3263)"
    " -> sessions are ended and those that come back wait, or the culprits are named",
    6: "The wrong database's snapshot was restored (DSLR 20)"
    " -> another application's database is refused unless that is meant",
    7: "URLs misread; an empty one reaches DROP DATABASE (DSLR 27)"
    " -> one parser, and nothing is done with an empty one",
    8: "Disk full: check first, say how much (pgbackrest 2721, pg_probackup 158)"
    " -> what is needed and what is free is named before the work",
    9: "Old snapshots and test databases fill the disk (integresql 4, pgcopydb 564)"
    " -> retention with a minimum, bounds for templates, killed runs are cleaned up",
    10: "Retention must not count failures or other databases -> each name for itself, damaged ones apart",
    11: "`latest` for scripts, a plain copy for mounts (docker-postgres-backup-local 59, 151)"
    " -> link, hard link or copy, replaced in one step",
    12: "Versions of tools and server (pgcopydb 322, pgsync 226) -> one clear message before anything runs",
    13: "`\\restrict` breaks loaders (docker-postgres-backup-local 174) -> read by the library itself",
    14: "Passwords in argv, logs, errors (django-dbbackup 384, greenmask 28) -> nowhere; files are private",
    15: "A fresh database for each test in milliseconds (pytest-postgresql 393, testcontainers-node 952)"
    " -> a rewind takes milliseconds; a clone is there for what cannot be rewound",
    16: "One template for all workers of pytest-xdist (pytest-postgresql 1243, 470, 680)"
    " -> generated, dumped and loaded once, whatever `-n` says",
    17: "A killed run must not poison the next (pytest-postgresql 265)"
    " -> after kill -9 the next run is green, without flags, and clears up",
    18: "Scheduled refresh from a shared dump (stellar 78) -> silent under cron, never two at once",
    19: "Stale after a change of the schema (opencollective 10145)"
    " -> the difference is named: warn, or refuse",
    20: "INSERT loads are slow; modern ways to clone (Replibyte 36, 266; integresql 23)"
    " -> COPY, and the server's quickest way by size and version",
}


@lru_cache(maxsize=1)
def asks_tested(folder: Path) -> dict[int, list[str]]:
    """Return the tests whose docstring names an ask, by its number."""
    return naming_tests(folder, "PEERS", ASKS)
