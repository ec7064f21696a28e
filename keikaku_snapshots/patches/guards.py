"""Guards against the wrong run: what must have happened before a patch is run."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import PatchRefusedError
from keikaku_snapshots.patches import records
from keikaku_snapshots.patches.definition import StepPatch
from keikaku_snapshots.patches.records_schema import SCHEMA
from keikaku_snapshots.patches.source import source_hash

if TYPE_CHECKING:
    from keikaku_snapshots.patches.definition import Patch
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.settings import PatchSettings
    from keikaku_snapshots.patches.surroundings import Surroundings
    from keikaku_snapshots.postgres.connect import Connection

_FLOOR_ROWS = 10


def check_guards(
    connection: Connection,
    around: Surroundings,
    execution: Execution,
    settings: PatchSettings,
    *,
    again: bool,
    count: int | None,
) -> None:
    """Refuse a new run for which something is missing.

    Args:
        connection: The database.
        around: Windows and clock.
        execution: The run, pending.
        settings: What the patch needs.
        again: Whether it may run although it has run before.
        count: Rows that match now; None when nobody has counted them.

    Raises:
        PatchRefusedError: Something is missing.
        WindowClosedError: No maintenance window is open.
    """
    if around.windows is not None and not execution.outside_window_reason:
        around.windows.check_open(around.clock())
    _check_others(connection, execution, again=again)
    if settings.require_dry_run:
        _check_dry_run(connection, around, execution, settings, count)
    if settings.require_approval:
        _check_approval(connection, execution)


def _check_others(connection: Connection, execution: Execution, *, again: bool) -> None:
    for other in records.recent(connection, patch_name=execution.patch_name, limit=1000):
        if other.kind != "run" or other.execution_id == execution.execution_id:
            continue
        if other.status == "running":
            raise PatchRefusedError(
                f"data patch {execution.patch_name} has a run that has not ended",
                found=f"Execution: {other.execution_id}, {other.sub_state}",
                hint="Resume that run or take it back: `keikaku patch resume` or `rollback`.",
                hint_ja="その実行を再開するかロールバックしてください"
                "(`keikaku patch resume ID`、`keikaku patch rollback ID`)。",
                other=str(other.execution_id),
            )
        same = (other.patch_version, other.parameters_hash) == (
            execution.patch_version,
            execution.parameters_hash,
        )
        if same and other.status == "completed" and not again:
            raise PatchRefusedError(
                f"data patch {execution.patch_name} has run already, with the same parameters",
                found=f"Execution: {other.execution_id}, completed at {other.completed_at}",
                hint="If it is really meant to run once more, say so: again=True (--again).",
                hint_ja="再度実行する場合は again=True(--again)を指定してください。",
                other=str(other.execution_id),
            )


def _check_dry_run(
    connection: Connection,
    around: Surroundings,
    execution: Execution,
    settings: PatchSettings,
    count: int | None,
) -> None:
    rehearsed = execution.findings.get("kind") == StepPatch.__name__
    wanted = "rehearsal" if rehearsed else "dry_run"
    oldest = around.clock() - timedelta(hours=settings.dry_run_max_age_h)
    for other in records.recent(connection, patch_name=execution.patch_name, limit=1000):
        if (
            other.kind == wanted
            and other.status == "completed"
            and other.source_hash == execution.source_hash
            and other.parameters_hash == execution.parameters_hash
            and other.created_at >= oldest
        ):
            if wanted == "dry_run" and count is not None:
                _check_count(other, count)
            return
    words = wanted.replace("_", " ")
    command = "rehearse" if rehearsed else "run"
    raise PatchRefusedError(
        f"data patch {execution.patch_name} needs a {words} first",
        found=f"No {words} of the same source and parameters has succeeded in the last "
        f"{settings.dry_run_max_age_h:g} hours.",
        hint=f"keikaku patch {command} {execution.patch_name}, with the same parameters; then run it again.",
        hint_ja=f"同じパラメータで `keikaku patch {command} {execution.patch_name}` を先に実行してください。",
    )


def _check_count(dry_run: Execution, count: int) -> None:
    seen = dry_run.processed_records
    if abs(count - seen) > max(seen / 10, _FLOOR_ROWS):
        raise PatchRefusedError(
            "the dry run of this data patch saw another number of rows",
            found=f"Then: {seen:,}; now: {count:,}; more than 10 % apart",
            hint="Find out what has changed, and make a new dry run.",
            hint_ja="行数が変わった理由を確認し、ドライランをやり直してください。",
        )


def _check_approval(connection: Connection, execution: Execution) -> None:
    row = connection.execute(
        f"SELECT actor FROM {SCHEMA}.approval WHERE patch_name = %s AND source_hash = %s"  # noqa: S608
        " AND parameters_hash = %s AND actor <> %s ORDER BY number DESC LIMIT 1",
        [execution.patch_name, execution.source_hash, execution.parameters_hash, execution.actor],
    ).fetchone()
    if row is None:
        raise PatchRefusedError(
            f"data patch {execution.patch_name} must be approved by somebody else first",
            found=f"You are {execution.actor}; nobody else has approved this source with these parameters.",
            hint=f"Another person: keikaku patch run {execution.patch_name} --approve, same parameters.",
            hint_ja=f"別の担当者が同じパラメータで `keikaku patch run {execution.patch_name} --approve` を"
            "実行してください。",
        )
    records.update(connection, execution.execution_id, approved_by=row[0])


def check_source(patch: Patch, execution: Execution) -> None:
    """Refuse to go on with a run whose patch has changed since.

    Args:
        patch: The patch as it is now.
        execution: The run.

    Raises:
        PatchRefusedError: Its source is another one.
    """
    if source_hash(patch) != execution.source_hash:
        raise PatchRefusedError(
            f"data patch {patch.name} was changed since this run began",
            found=f"Execution: {execution.execution_id}, source {execution.source_hash[:12]}; "
            f"now {source_hash(patch)[:12]}",
            hint="Put the old source back to resume it, or roll the run back and begin anew.",
            hint_ja="元のソースに戻して再開するか、ロールバックして最初からやり直してください。",
        )
