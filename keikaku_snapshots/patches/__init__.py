"""Data patches: reviewed changes of live data, in small, verified, reversible batches.

::

    @data_patch("round_prices")
    class RoundPrices(SqlPatch):
        table, key = "public.inventories", ("id",)
        where = "status = 'active'"
        set = {"price": "round(price, 0)"}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keikaku_snapshots.patches.changes import Change, Delete, Insert, Reject, Row, Skip, Update
    from keikaku_snapshots.patches.context import PatchContext, StepContext
    from keikaku_snapshots.patches.definition import RowPatch, SqlPatch, StepPatch, data_patch
    from keikaku_snapshots.patches.execution import Execution
    from keikaku_snapshots.patches.executor import DataPatchExecutor
    from keikaku_snapshots.patches.registry import DataPatchRegistry
    from keikaku_snapshots.patches.settings import EngineSettings, PatchSettings

__all__ = [
    "Change",
    "DataPatchExecutor",
    "DataPatchRegistry",
    "Delete",
    "EngineSettings",
    "Execution",
    "Insert",
    "PatchContext",
    "PatchSettings",
    "Reject",
    "Row",
    "RowPatch",
    "Skip",
    "SqlPatch",
    "StepContext",
    "StepPatch",
    "Update",
    "data_patch",
]

_HOME = {
    "Change": "changes",
    "DataPatchExecutor": "executor",
    "DataPatchRegistry": "registry",
    "Delete": "changes",
    "EngineSettings": "settings",
    "Execution": "execution",
    "Insert": "changes",
    "PatchContext": "context",
    "PatchSettings": "settings",
    "Reject": "changes",
    "Row": "changes",
    "RowPatch": "definition",
    "Skip": "changes",
    "SqlPatch": "definition",
    "StepContext": "context",
    "StepPatch": "definition",
    "Update": "changes",
    "data_patch": "definition",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
