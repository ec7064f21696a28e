"""One process of the storm: does whatever the dice say until its time is up, and reports in JSON.

Run as ``python -m tests.campaigns.storm_worker SPECIFICATION``; the specification is JSON.
Every second process works through the command line, the others through the library.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg

from keikaku_snapshots import RetentionPolicy, SnapshotManager
from keikaku_snapshots.errors import KeikakuError
from keikaku_snapshots.snapshots.store import SnapshotStore
from tests.campaigns.bookstore import SALE, makeable, options_of, typeable

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("alpha", "beta")
#: Longest run of one command; a process that hangs is a violation, not a stuck test.
_COMMAND_S = 60

#: What contention may be answered with, by operation; everything else is a violation.
ALWAYS = frozenset({"LockBusyError", "SnapshotInUseError", "SnapshotNotFoundError"})
#: What being disconnected by somebody's swap looks like; rare enough that the cause is told.
LOST = frozenset({"ConnectError", "CreateFailedError", "RestoreFailedError"})
ALLOWED = {
    "create": ALWAYS | {"DatabaseInUseError", "ConnectError", "CreateFailedError"},
    "restore": ALWAYS | {"DatabaseInUseError", "ConnectError", "RestoreFailedError"},
    "rename": ALWAYS | {"SnapshotExistsError"},
}
#: How often each operation comes, of 100.
WEIGHTS = {
    "create": 26,
    "restore": 20,
    "delete": 8,
    "prune": 9,
    "rename": 4,
    "pin": 5,
    "verify": 8,
    "list": 10,
    "sweep": 4,
    "sell": 6,
}


class Violation(Exception):  # noqa: N818 - not an error of the product's kind
    """Something that must never be seen was seen."""


class Worker:
    """Chooses operations and does them.

    Args:
        urls: The databases.
        directory: The snapshot directory.
        dice: Decides everything.
    """

    def __init__(self, urls: list[str], directory: str, dice: random.Random) -> None:
        self._urls, self._directory, self._dice = urls, directory, dice
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.violations: list[str] = []

    def run(self, seconds: float) -> None:
        """Work until the time is up."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            (operation,) = self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
            refusal = self._attempt(operation)
            if refusal is None:
                self.done[operation] += 1
                continue
            kind, text = refusal
            told = f": {_cause(text)}" if kind in LOST else ""
            self.refused[f"{operation} {kind}{told}"] += 1
            if kind not in ALLOWED.get(operation, ALWAYS):
                self.violations.append(f"{operation}: {kind}: {text}")

    def _attempt(self, operation: str) -> tuple[str, str] | None:
        if operation == "sell":
            self._sell()
            return None
        return self._do(operation)

    def _do(self, operation: str) -> tuple[str, str] | None:
        raise NotImplementedError

    def _name(self) -> str:
        return self._dice.choice(NAMES)

    def _sell(self) -> None:
        """The application itself; a swap disconnects it, a restore in place may keep it waiting."""
        with (
            contextlib.suppress(psycopg.OperationalError, psycopg.errors.InsufficientPrivilege),
            psycopg.connect(self._dice.choice(self._urls), connect_timeout=10) as connection,
        ):
            connection.execute("SET lock_timeout = '2s'")
            book = self._dice.randint(1, 10)
            try:
                connection.execute(SALE.format(book))
            except psycopg.errors.CheckViolation:
                connection.rollback()


class LibraryWorker(Worker):
    """Through `SnapshotManager`."""

    def _manager(self) -> SnapshotManager:
        return SnapshotManager(
            self._dice.choice(self._urls),
            self._directory,
            lock_wait_s=self._dice.choice([0, 0, 0.2, 2]),
            minimum_free_mb=1,
            lock_timeout_s=1,
        )

    def _do(self, operation: str) -> tuple[str, str] | None:
        work: Callable[[SnapshotManager], Any] = getattr(self, f"_{operation}")
        try:
            with self._manager() as manager:
                work(manager)
        except KeikakuError as error:
            return type(error).__name__, str(error)
        except Violation as error:
            return "Violation", str(error)
        except Exception:  # noqa: BLE001 - whatever else comes out is what the storm looks for
            return "Traceback", traceback.format_exc()
        return None

    def _create(self, manager: SnapshotManager) -> None:
        own = f"label{self._dice.randint(1, 3)}" if self._dice.random() < 0.2 else None
        manager.create_snapshot(
            self._name(), version=own, overwrite=own is not None, **options_of(self._dice.choice(makeable()))
        )

    def _restore(self, manager: SnapshotManager) -> None:
        snapshot = manager.get_snapshot(self._name())
        strategies = ["auto", "in_place"] + ["swap"] * (snapshot.format != "json")
        manager.restore_snapshot(
            snapshot.name,
            snapshot.version,
            strategy=self._dice.choice(strategies),
            disconnect=self._dice.random() < 0.3,
        )

    def _delete(self, manager: SnapshotManager) -> None:
        found = [item for item in manager.list_snapshots(self._name()) if not item.pinned]
        if found:
            manager.delete_snapshot(found[-1].name, self._dice.choice(found).version)

    def _prune(self, manager: SnapshotManager) -> None:
        manager.prune(RetentionPolicy(keep_last=self._dice.randint(2, 4)))

    def _rename(self, manager: SnapshotManager) -> None:
        manager.rename_snapshot(*self._dice.sample([*NAMES, "gamma"], 2))

    def _pin(self, manager: SnapshotManager) -> None:
        manager.pin_snapshot(self._name(), pinned=self._dice.random() < 0.3)

    def _verify(self, manager: SnapshotManager) -> None:
        manager.verify_snapshot(self._name())

    def _list(self, manager: SnapshotManager) -> None:
        damaged = [f"{item}: {item.problem}" for item in manager.list_snapshots() if not item.is_valid]
        if damaged:
            raise Violation("; ".join(damaged))

    def _sweep(self, manager: SnapshotManager) -> None:
        SnapshotStore(manager.directory, grace_s=0).sweep()


class CommandWorker(Worker):
    """Through `python -m keikaku_snapshots`."""

    @property
    def _place(self) -> list[str]:
        return ["--snapshot-dir", self._directory]

    def _do(self, operation: str) -> tuple[str, str] | None:
        words = self._words(operation)
        environment = {"KEIKAKU_DB_URL": self._dice.choice(self._urls), "KEIKAKU_MINIMUM_FREE_MB": "1"}
        for name in ("PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
            environment[name] = os.environ.get(name, "")
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "keikaku_snapshots", *words, "--json", *self._place],
                env=environment,
                capture_output=True,
                text=True,
                timeout=_COMMAND_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "Hang", f"{words} did not end within {_COMMAND_S} s"
        if "Traceback" in ran.stderr:
            return "Traceback", f"{words}: {ran.stderr}"
        try:
            document = json.loads(ran.stdout)
        except ValueError:
            return "NoDocument", f"{words}: exit {ran.returncode}: {ran.stdout!r} {ran.stderr!r}"
        if ran.returncode != 0:
            kind = document.get("error", {}).get("type", "NoType") if isinstance(document, dict) else "NoType"
            return str(kind), f"{words}: exit {ran.returncode}: {ran.stderr}"
        if operation == "list" and (damaged := [one for one in _snapshots(document) if not one["is_valid"]]):
            return "Violation", str(damaged)
        return None

    def _words(self, operation: str) -> list[str]:
        name = self._name()
        if operation == "create":
            options = options_of(self._dice.choice(typeable()))
            words = ["create", name, "--format", options["format"], "--lock-wait", "0.2"]
            words += ["--compression", options["compression"]] if "compression" in options else []
            return words + (["--scope", "test-data"] if "scope" in options else [])
        if operation == "restore":
            extra = self._dice.choice([[], ["--disconnect"], ["--strategy", "in_place"]])
            return ["restore", name, "--lock-wait", "0.2", "--yes", *extra]
        return {
            "delete": ["delete", name, "--keep", str(self._dice.randint(1, 3)), "--yes"],
            "prune": ["prune", "--keep-last", str(self._dice.randint(2, 4)), "--yes"],
            "rename": ["rename", *self._dice.sample([*NAMES, "gamma"], 2)],
            "pin": ["pin", name, *self._dice.choice([[], ["--off"], ["--off"]])],
            "verify": ["verify", name],
            "list": ["list"],
            "sweep": ["prune", name, "--keep-last", "3", "--yes"],
        }[operation]


def _cause(text: str) -> str:
    """The first lines of an error, names of snapshots and databases left out."""
    return re.sub(r"t_\w+|\d{4,}\w*|'\w+'", "…", " / ".join(text.split("\n")[:3]))[:300]


def _snapshots(document: Any) -> list[dict[str, Any]]:
    found = document["snapshots"] if isinstance(document, dict) else document
    return [one for one in found if isinstance(one, dict)]


def main(specification: dict[str, Any]) -> None:
    """Work, then print the report as one line of JSON."""
    kind = CommandWorker if specification["number"] % 2 else LibraryWorker
    dice = random.Random(f"{specification['seed']}/{specification['number']}")
    worker = kind(specification["urls"], specification["directory"], dice)
    worker.run(specification["seconds"])
    report = {"done": worker.done, "refused": worker.refused, "violations": worker.violations}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
