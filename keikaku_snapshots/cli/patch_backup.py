"""The dump that a patch may want before its first batch, made from a snapshot.

The rooms of patches and snapshots do not know each other; this joins them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from keikaku_snapshots.cli.session import Session


def backup_of(session: Session, patch_name: str) -> Callable[[UUID, Sequence[str]], str]:
    """Make what dumps before a run.

    Args:
        session: The command, for database and directory.
        patch_name: The patch.

    Returns:
        Gets the number of the run and its tables; returns where the dump lies, once it was read back and
        found whole. It is a snapshot of the whole database, because only that can be restored with all
        that refers to the tables.
    """

    def dump(execution_id: UUID, tables: Sequence[str]) -> str:
        with session.manager(allow_protected=True) as manager, session.output.progress() as show:
            made = manager.create_snapshot(
                f"before_{patch_name}",
                f"before run {execution_id} of the data patch {patch_name} on {', '.join(tables)}",
                format="custom",
                tags=("patch",),
                pinned=True,
                metadata={"execution_id": str(execution_id), "tables": list(tables)},
                progress=show,
            )
            manager.verify_snapshot(made.name, made.version)
        return str(made.path)

    return dump
