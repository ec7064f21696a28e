"""The catalogue of faults: what goes wrong with pg_dump, psql and live databases, and what we must do.

Code and tests name a case by its number ("FAULTS 5"). Each was reproduced with
the raw tools of PostgreSQL 15, 16 and 18. `docs/reference/faults.md` is made
from this list and from the docstrings of the tests.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Case number: what goes wrong -> what must happen.
CASES: dict[int, str] = {
    1: "A dump is cut at any byte; psql restores it with exit 0 -> refused before the database is touched",
    2: "Our process is killed while psql reads the dump -> the database is unchanged",
    3: "A cut .gz is piped into psql -1 and commits -> nothing changes",
    4: "An SQL error in mid-file without ON_ERROR_STOP is exit 0 -> the restore fails",
    5: "--single-transaction alone hides an SQL error behind exit 0 -> the restore fails",
    6: "A .psqlrc switches ON_ERROR_STOP off -> it is ignored",
    7: "A byte of the data is changed; psql and pg_restore -l accept it -> the checksum refuses it",
    8: "The disk is full for the last buffer and pg_dump 15 exits 0 -> the dump is refused as incomplete",
    9: "The disk is full during a dump -> a disk error, no half file, the earlier snapshot stays",
    10: "pg_dump fails in a pipeline whose exit code is 0 -> no pipelines; the failure is seen",
    11: "PGHOSTADDR, PGOPTIONS, PGSERVICE are inherited -> they have no effect",
    12: "A dump made with -C moves the restore to another database -> refused",
    13: "A restore with --clean --create fails midway -> the old data is still there",
    14: "A rollback by restoring a backup loses other people's later writes -> never done",
    15: "A patch contains COMMIT and then fails -> found and reported as partly applied",
    16: "A patch ends with ROLLBACK and exits 0 -> not reported as success",
    17: "The connection is cut right after COMMIT was sent -> outcome unknown, never retried",
    18: "Row security hides rows from a dump or a load -> it fails instead",
    19: "A line '\\.' in CSV loses the rows after it -> rows travel by protocol COPY",
    20: "A compressed or binary file is given to psql -> refused by its header",
    21: "A table pattern matches nothing and exits 0 -> found",
    22: "Two names share a prefix -> grouped by the manifest, never by a file pattern",
    23: "A dump holds \\! or \\copy ... program -> not run",
    24: "A backquoted \\unrestrict argument runs a command -> not run",
    25: "A file knows its own \\restrict key -> one pair only, first and last",
    26: "An outer \\restrict refuses modern dumps -> not used",
    27: "psql is older than the dump -> said before anything runs",
    28: "A line scan for backslashes is wrong both ways -> lines are read as psql reads them",
    29: "SQL itself runs programs as a superuser -> documented: restoring is trusting",
    30: "A password stands in argv -> never",
    31: "libpq's messages repeat secrets -> redacted by value everywhere",
    32: "Exceptions of subprocess hold argv -> our own errors instead",
    33: "Server messages quote row values -> not in log lines",
    34: "pg_dump's file is readable by everybody -> 0600 in a 0700 directory",
    35: "A planted symbolic link is followed -> files are made with O_EXCL and O_NOFOLLOW",
    36: "A dump holds passwords of foreign servers -> documented",
    37: "Names such as ../../etc/passwd, -rf or latest -> refused",
    38: "A database is named like a connection string -> taken as a name",
    39: "A name over 63 bytes is cut by the server -> refused",
    40: "A password file readable by others is ignored by libpq -> made 0600",
    41: "Unknown URL parameters lose TLS -> an error; asyncpg's ssl is translated",
    42: "The target looks like production -> refused unless allowed",
    43: "pg_dump is ended by a signal and leaves a partial file -> removed or swept",
    44: "Our process is killed and its children go on -> they end with it",
    45: "A worker thread ends and its child is killed -> programs start from one long-lived thread",
    46: "SIGTERM skips every finally -> the command line turns it into an exception",
    47: "A timeout kills psql but not its query -> cancelled with the right signal",
    48: "A grandchild survives the timeout -> the whole process group ends",
    49: "A crash at any file operation of a publish -> the invariants hold",
    50: "A crash during a swap leaves a closed database -> one transaction, no closed state",
    51: "A backend is terminated in mid-dump or mid-restore -> an error, nothing half done",
    52: "A file size limit ends pg_dump without a word -> a disk error",
    53: "No inodes, read-only, no permission -> found by a real test before the work",
    54: "Two snapshots of one name at once -> one waits or fails",
    55: "A lock file is unlinked on release -> never",
    56: "One process opens its lock twice -> fails at once, never hangs",
    57: "The parent is killed while its child still dumps -> the child holds the lock",
    58: "Two restores into one database -> one after the other",
    59: "Advisory locks are per database -> always taken in the maintenance database",
    60: "A restore waits for ever for a session's lock -> stops at its limit and names the session",
    61: "pg_dump waits for ever for a lock -> it always has a limit",
    62: "A session inside stops CREATE ... TEMPLATE, RENAME or DROP -> terminated or named",
    63: "A swap loses settings, grants and comment -> they are carried over",
    64: "latest is a directory or a foreign file -> refused; else replaced atomically",
    65: "latest is behind the newest snapshot after a crash -> recomputed",
    66: "A prune meets a restore of the same file -> refused",
    67: "pg_dump is older than the server -> said before, with both versions",
    68: "Tools of another major write or read what the server cannot -> tools of the server's major",
    69: "A dump of an older major is restored into a newer one -> works",
    70: "A role of the dump does not exist here -> restored without it, and named",
    71: "An extension needs a superuser -> said before",
    72: "Objects made after the snapshot survive a --clean restore -> an exact restore removes them",
    73: "The target is read-only, or has another encoding -> said before",
    74: "Text is sent without a client encoding -> always UTF-8",
    75: "Server messages in another encoding hide the failure -> decoded with replacement",
    76: "The collation version of a database differs -> a template copy is not tried",
    77: "A value is too large for pg_dump -> a clear failure",
    78: "Circular foreign keys warn -> decided by exit code and checks, not by warnings",
    79: "Debian's pg_dump is a wrapper -> the real program is found and recorded",
    80: "A missing password prompts on a terminal -> never",
    81: "Two dumps of one state differ in their random key -> the file's hash never means same data",
    82: "Ids are copied and the sequence stays behind -> sequences end above the data",
    83: "setval is not rolled back -> documented",
    84: "Generated columns are refused by COPY -> left out of the column list",
    85: "Foreign keys across two COPYs -> one transaction, in foreign-key order",
    86: "Triggers are disabled and orphans stay -> never",
    87: "NUL, BOM or bad UTF-8 in a value -> a clear error",
    88: "A statement cannot run in a transaction -> refused with the reason",
    89: "psql expands :name -> no user variables are passed",
    90: "Two snapshots in one second -> both are kept",
    91: "Local time repeats an hour -> UTC",
    92: "The clock goes back -> the new version still sorts last",
    93: "A file's mtime lies -> the manifest's time counts",
    94: "A rename across file systems fails -> the temporary file lies beside its target",
    95: "A FIFO or directory stands where a snapshot should -> refused without hanging",
    96: "tenacity retries what it must not -> an allow-list of transient errors",
    97: "Two parsers read one URL differently -> libpq's own is the only one",
    98: "A socket path is too long -> a clear error",
    99: "Keepalives have no environment variable -> set on every connection we make",
    100: "A plain dump with large objects carries its own COMMIT -> never restored in place",
    101: "Dropping the old database deletes logical slots -> looked for first",
}

#: Cases of parts that do not exist yet; the test of the catalogue expects none for them.
LATER: frozenset[int] = frozenset()

_NUMBERS = r"\s+((?:\d+(?![\d.]*\.\d)(?:\s*[-,/]\s*|\s+and\s+)?)+)"


@lru_cache(maxsize=1)
def cases_tested(folder: Path) -> dict[int, list[str]]:
    """Return the tests whose docstring names a case, by case number."""
    return naming_tests(folder, "FAULTS?", CASES)


def naming_tests(folder: Path, word: str, numbers: Iterable[int]) -> dict[int, list[str]]:
    """Return the tests whose docstring has this word and a number behind it, by number."""
    reference = re.compile(word + _NUMBERS)
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for number in _numbers(reference, ast.get_docstring(node) or ""):
                    found.setdefault(number, []).append(f"{path.relative_to(folder)}::{node.name}")
    return found


def _numbers(reference: re.Pattern[str], text: str) -> set[int]:
    numbers: set[int] = set()
    for match in reference.finditer(text):
        for first, last in re.findall(r"(\d+)(?:\s*-\s*(\d+))?", match[1]):
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers
