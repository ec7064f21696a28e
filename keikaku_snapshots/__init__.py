"""Realistic PostgreSQL test data in seconds, frozen as a snapshot and brought back exactly.

::

    from keikaku_snapshots import SnapshotManager

    with SnapshotManager("postgresql://localhost/app_test", snapshot_dir="snapshots") as manager:
        manager.create_snapshot("before")
        manager.restore_snapshot("before")

Datasets are in `keikaku_snapshots.datasets`, every error in
`keikaku_snapshots.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keikaku_snapshots.errors import KeikakuError
    from keikaku_snapshots.postgres.embedded import EmbeddedServer
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import Progress
    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.retention import RetentionPolicy

    #: Version of the installed package.
    __version__: str

__all__ = [
    "DatabaseURL",
    "EmbeddedServer",
    "KeikakuError",
    "Progress",
    "RetentionPolicy",
    "Snapshot",
    "SnapshotManager",
    "__version__",
]

# Answered on first use: importing the package must cost a few milliseconds,
# because `keikaku --help` and every pytest start pay for it.
# No name here may be that of a module of the package (`generate` is one):
# importing the module would put it in the name's place.
_HOME = {
    "DatabaseURL": "keikaku_snapshots.postgres.url",
    "EmbeddedServer": "keikaku_snapshots.postgres.embedded",
    "KeikakuError": "keikaku_snapshots.errors",
    "Progress": "keikaku_snapshots.progress",
    "RetentionPolicy": "keikaku_snapshots.snapshots.retention",
    "Snapshot": "keikaku_snapshots.snapshots.manifest",
    "SnapshotManager": "keikaku_snapshots.snapshots.manager",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        import importlib

        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("keikaku_snapshots")
    except PackageNotFoundError:
        # A checkout on sys.path that was never installed.
        return "0+unknown"
