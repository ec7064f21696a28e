"""What of a run stands in the audit log: its beginning, every change of its state, and what people asked for.

A line that cannot be written stops a run before it has changed anything, if the configuration says so. After
that it is a warning: a run is not broken, and never a rollback, because of its log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import KeikakuError

if TYPE_CHECKING:
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.surroundings import Surroundings

log = logging.getLogger("keikaku_snapshots.audit")


def began(around: Surroundings, execution: Execution, *, resumes: bool) -> None:
    """Write that a run begins, or goes on; before anything is changed.

    Args:
        around: With the audit log, if there is one.
        execution: The run.
        resumes: Whether it goes on with what another process began.

    Raises:
        KeikakuError: The line could not be written, and that is to be an error.
    """
    if around.audit is not None:
        around.audit("run_resumes" if resumes else "run_begins", _identity(execution))


def changed(around: Surroundings, execution: Execution) -> None:
    """Write the state that a run has come to.

    Args:
        around: With the audit log, if there is one.
        execution: The run as it is now.
    """
    # No message of an error: it may quote a row; the record of the run has it.
    _leniently(
        around,
        f"run_{execution.sub_state}",
        {
            "execution_id": execution.execution_id,
            "patch": execution.patch_name,
            "kind": execution.kind,
            "status": execution.status,
            "processed": execution.processed_records,
            "changed": execution.changed_records,
            "inconsistent": execution.inconsistent_records,
            "sqlstate": execution.error_sqlstate,
            "rollback_performed": execution.rollback_performed,
            "conflicts": execution.conflicts,
        },
    )


def requested(around: Surroundings, execution: Execution, what: str, actor: str) -> None:
    """Write who asked for something.

    Args:
        around: With the audit log, if there is one.
        execution: The run.
        what: ``pause``, ``cancel`` or ``rollback``.
        actor: Who asked.
    """
    facts = {"execution_id": execution.execution_id, "patch": execution.patch_name, "actor": actor}
    _leniently(around, f"{what}_requested", facts)


def _identity(execution: Execution) -> dict[str, Any]:
    return {
        "execution_id": execution.execution_id,
        "patch": execution.patch_name,
        "version": execution.patch_version,
        "kind": execution.kind,
        "actor": execution.actor,
        "source_hash": execution.source_hash,
        "parameters": execution.parameters,
        "target_tables": list(execution.target_tables),
        "outside_window_reason": execution.outside_window_reason,
        "approved_by": execution.approved_by,
    }


def _leniently(around: Surroundings, event: str, facts: dict[str, Any]) -> None:
    if around.audit is None:
        return
    try:
        around.audit(event, facts)
    except KeikakuError as error:
        log.warning("the audit log could not be written (%s): %s", event, error.headline)
