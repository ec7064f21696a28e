"""Acceptance 33, of runs: each beginning, each state and each request stands in the audit log."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.errors import AuditError, KeikakuError, PatchFailedError
from keikaku_snapshots.patches.audit import AuditLog
from keikaku_snapshots.patches.definition import SqlPatch, data_patch
from keikaku_snapshots.patches.executor import DataPatchExecutor
from keikaku_snapshots.patches.registry import DataPatchRegistry
from keikaku_snapshots.patches.settings import AuditSettings, PatchSettings
from tests.patch_items import AddOne, quantities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL

KEY = {"KEIKAKU_AUDIT_KEY": secrets.token_hex(32)}


@data_patch("break_in_the_middle")
class BreakInTheMiddle(SqlPatch):
    """Cannot be done beyond row 5."""

    table, key = "public.items", ("id",)
    where = "true"
    set = {"qty": "1 / (6 - id)"}  # noqa: RUF012 - the form that a patch has


@pytest.fixture
def log(ten_items: DatabaseURL) -> Iterator[AuditLog]:
    """The audit log."""
    with AuditLog(ten_items, environ=KEY) as log:
        yield log


def executor(url: DatabaseURL, audit: Any, **settings: Any) -> DataPatchExecutor:
    """The engine with the two patches, in batches of three rows."""
    given = PatchSettings(require_dry_run=False, batch_size=3, adaptive=False, **settings)
    return DataPatchExecutor(
        url.text,
        registry=DataPatchRegistry([AddOne, BreakInTheMiddle], shipped=False, entry_points=False),
        settings={"add_one": given, "break_in_the_middle": given},
        audit=audit,
    )


@pytest.mark.parametrize("mode", ["batched", "single_transaction"])
def test_a_run_stands_in_the_log_from_its_beginning_to_its_end(
    mode: str, ten_items: DatabaseURL, log: AuditLog
) -> None:
    """Who ran what, with which parameters and source, and how it ended; then who took it back."""
    engine = executor(ten_items, log.append, mode=mode)

    execution = engine.execute("add_one", dry_run=False, actor="aoki")
    engine.rollback(execution.execution_id, actor="baba")

    entries = list(log.read())
    events = [entry.event for entry in entries]
    assert events[0] == "run_validating"
    assert events[1] == "run_begins"
    assert [event for event in events if event in {"run_done", "rollback_requested", "run_rolled_back"}] == [
        "run_done",
        "rollback_requested",
        "run_rolled_back",
    ]
    assert entries[1].facts["actor"] == "aoki"
    assert entries[1].facts["source_hash"] == execution.source_hash
    assert {entry.facts["execution_id"] for entry in entries} == {str(execution.execution_id)}
    assert next(entry for entry in entries if entry.event == "rollback_requested").facts["actor"] == "baba"
    assert log.verify() == []


def test_a_run_that_failed_and_was_taken_back_has_been_audited(ten_items: DatabaseURL, log: AuditLog) -> None:
    """The lines are committed by themselves, so the rollback leaves them."""
    with pytest.raises(PatchFailedError):
        executor(ten_items, log.append).execute("break_in_the_middle", dry_run=False, actor="aoki")

    entries = list(log.read())
    assert [entry.event for entry in entries][-2:] == ["run_rolling_back", "run_rolled_back"]
    assert entries[-1].facts["rollback_performed"] is True
    assert entries[-1].facts["sqlstate"] == "22012"
    assert quantities(ten_items) == {0}
    assert log.verify() == []


def test_a_log_that_cannot_be_written_stops_a_run_before_it_changes_anything(
    ten_items: DatabaseURL, log: AuditLog
) -> None:
    """The run is recorded as failed; with ``warn`` it goes on."""
    log.append("begun_with_this_key")
    other = {"KEIKAKU_AUDIT_KEY": secrets.token_hex(32)}
    with AuditLog(ten_items, environ=other) as strict:
        engine = executor(ten_items, strict.append)
        with pytest.raises(AuditError, match="another key"):
            engine.execute("add_one", dry_run=False)

    assert quantities(ten_items) == {0}
    assert [(run.status, run.sub_state) for run in engine.status()] == [("failed", "failed")]
    with AuditLog(ten_items, AuditSettings(on_failure="warn"), environ=other) as lenient:
        assert executor(ten_items, lenient.append).execute("add_one", dry_run=False).status == "completed"


def test_a_log_that_breaks_in_the_middle_breaks_no_run(
    ten_items: DatabaseURL, log: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    """After the first line it is a warning: half a patch would be worse than half a log."""

    def audit(event: str, facts: dict[str, Any]) -> None:
        if event not in {"run_begins", "run_validating"}:
            raise KeikakuError("the audit log has gone")
        log.append(event, facts)

    assert executor(ten_items, audit).execute("add_one", dry_run=False).status == "completed"
    assert "the audit log could not be written (run_done)" in caplog.text
