"""Datasets: realistic rows for any tables, the same ones everywhere, copied in seconds.

::

    from keikaku_snapshots.datasets import generate, get_scale

    generate("keikaku", get_scale("medium"), "postgresql://localhost/app_test")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keikaku_snapshots.datasets.attempts import Timeouts
    from keikaku_snapshots.datasets.dataset import (
        Dataset,
        Scale,
        Shard,
        Table,
        find_dataset,
        get_scale,
        known_datasets,
    )
    from keikaku_snapshots.datasets.generation import Generated, generate
    from keikaku_snapshots.datasets.keikaku import (
        bulk_create_offices,
        bulk_create_staffs,
        bulk_create_support_plan_cycles,
        bulk_create_support_plans_and_cycles,
        bulk_create_welfare_recipients,
    )

__all__ = [
    "Dataset",
    "Generated",
    "Scale",
    "Shard",
    "Table",
    "Timeouts",
    "bulk_create_offices",
    "bulk_create_staffs",
    "bulk_create_support_plan_cycles",
    "bulk_create_support_plans_and_cycles",
    "bulk_create_welfare_recipients",
    "find_dataset",
    "generate",
    "get_scale",
    "known_datasets",
]

# Answered on first use: SQLAlchemy costs 140 ms, and not every caller of one name needs it.
_HOME = {
    **dict.fromkeys(
        ("Dataset", "Scale", "Shard", "Table", "find_dataset", "get_scale", "known_datasets"),
        "keikaku_snapshots.datasets.dataset",
    ),
    "Generated": "keikaku_snapshots.datasets.generation",
    "Timeouts": "keikaku_snapshots.datasets.attempts",
    "generate": "keikaku_snapshots.datasets.generation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME.get(name, "keikaku_snapshots.datasets.keikaku")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
