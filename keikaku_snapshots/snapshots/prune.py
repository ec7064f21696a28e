"""Carry out a retention plan: decided and deleted under one lock, then what interrupted runs left."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import (
    AccessDeniedError,
    KeikakuError,
    PruneIncompleteError,
    SnapshotInUseError,
    SnapshotNotFoundError,
)
from keikaku_snapshots.snapshots.names import check_name
from keikaku_snapshots.snapshots.retention import Decision, PrunePlan, plan

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.snapshots.retention import RetentionPolicy
    from keikaku_snapshots.snapshots.store import Outcomes, Snapshots, SnapshotStore

log = logging.getLogger("keikaku_snapshots.prune")


def prune(
    store: SnapshotStore, policy: RetentionPolicy, *, name: str | None = None, dry_run: bool = False
) -> PrunePlan:
    """Delete what a policy does not keep, and sweep what dead processes left.

    Args:
        store: The directory.
        policy: What to keep.
        name: Only this name; every name if None.
        dry_run: Delete nothing.

    Returns:
        What stayed and what went, with reasons. One that is being restored stays.

    Raises:
        UsageError: The policy is empty.
        PruneIncompleteError: Some could not be deleted; ``details["plan"]`` says what was.
    """
    if name is not None:
        check_name(name)
    if dry_run or not store.directory.is_dir():
        planned = plan(store.list(name), policy, store.clock())
        return dataclasses.replace(planned, swept=tuple(_would_sweep(store)), dry_run=dry_run)
    planned = plan((), policy, store.clock())

    def choose(found: Snapshots) -> Snapshots:
        nonlocal planned
        planned = plan(found, policy, store.clock())
        return [decision.snapshot for decision in planned.delete]

    outcomes = store.delete_chosen(choose, doing="pruning the snapshots", name=name)
    done, problems = _what_happened(planned, outcomes)
    try:
        done = dataclasses.replace(done, swept=tuple(store.sweep()))
    except KeikakuError as error:
        problems.append(f"leftovers of interrupted runs: {_in_words(error)}")
    log.info("pruned %s: %d deleted, %d kept", store.directory, len(done.delete), len(done.keep))
    if problems:
        raise PruneIncompleteError(
            f"pruning was incomplete: {len(done.delete)} of {len(planned.delete)} were deleted",
            found="\n".join(problems),
            plan=done,
        )
    return done


def _what_happened(planned: PrunePlan, outcomes: Outcomes) -> tuple[PrunePlan, list[str]]:
    """The plan as it came out, and what went wrong, in words."""
    keep, delete, problems = list(planned.keep), [], []
    for decision, (snapshot, error) in zip(planned.delete, outcomes, strict=True):
        if error is None or isinstance(error, SnapshotNotFoundError):
            delete.append(decision)
            continue
        why = f"not deleted: {_in_words(error)}"
        if isinstance(error, SnapshotInUseError):
            log.info("%s stays until the next time: %s", snapshot, error.found)
        else:
            problems.append(f"{snapshot}: {_in_words(error)}")
        keep.append(Decision(snapshot, (why,)))
    return PrunePlan(tuple(keep), tuple(delete), dry_run=False), problems


def _would_sweep(store: SnapshotStore) -> list[Path]:
    try:
        return store.sweep(dry_run=True)
    except AccessDeniedError:
        return []  # a directory that is mounted read-only can still be planned for


def _in_words(error: KeikakuError) -> str:
    return f"{error.what} ({error.found})" if error.found else error.what
