"""The methods of `SnapshotManager` that look after the templates on the server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.snapshots.audit import AuditLog
    from keikaku_snapshots.snapshots.templates import Template

#: Most seconds to wait for spares that are on their way before they are dropped.
_SPARE_WAIT_S = 30.0
_POLL_S = 0.02


class TemplateMethods:
    """A part of `SnapshotManager`: the copies of snapshots that stay on the server."""

    if TYPE_CHECKING:
        _audit: AuditLog
        _allow_protected: bool
        _protected_words: tuple[str, ...]
        _allowed_databases: tuple[str, ...]
        _maintenance: str

        @property
        def url(self) -> DatabaseURL: ...  # noqa: D102

    def list_templates(self) -> list[Template]:
        """List the templates on the server, whoever made them, last used first.

        Returns:
            Templates with their spares.

        Raises:
            NoDatabaseError: The manager was made without a database.
            ConnectError: The server cannot be reached.
        """
        from keikaku_snapshots.postgres.connect import translated
        from keikaku_snapshots.postgres.databases import connect_maintenance
        from keikaku_snapshots.snapshots.templates import list_templates

        with (
            connect_maintenance(self.url, maintenance=self._maintenance) as admin,
            translated(self.url, "listing templates"),
        ):
            return list_templates(admin)

    def clear_templates(self, name: str | None = None, version: str | None = None) -> list[str]:
        """Drop templates and spares on the server, as far as the role may; snapshots stay.

        The next restore of each snapshot loads its file again.

        Args:
            name: Only those made from the snapshot of this name, which may be deleted by now; all if None.
            version: Only this version.

        Returns:
            Names of the dropped databases.

        Raises:
            UsageError: A version without a name.
            ProtectedDatabaseError: The database looks like production.
            ConnectError: The server cannot be reached.
        """
        from keikaku_snapshots.errors import UsageError
        from keikaku_snapshots.postgres.connect import translated
        from keikaku_snapshots.postgres.databases import clones_in_flight, connect_maintenance
        from keikaku_snapshots.snapshots.guards import check_protected
        from keikaku_snapshots.snapshots.templates import drop_databases, look

        if version is not None and name is None:
            raise UsageError("a version needs the name of its snapshot")
        with self._audit.recording("clear_templates", name, version=version) as record:
            check_protected(
                self.url,
                allow_protected=self._allow_protected,
                protected_words=self._protected_words,
                allowed_databases=self._allowed_databases,
            )
            with (
                connect_maintenance(self.url, maintenance=self._maintenance) as admin,
                translated(self.url, "dropping templates"),
            ):
                names = [
                    one.template.database
                    for one in look(admin)[0]
                    if _is_of(one.template.snapshot, name, version)
                ]
                # First the templates: afterwards nobody makes a spare of them.
                dropped = drop_databases(admin, names)
                deadline = time.monotonic() + _SPARE_WAIT_S
                while any(clones_in_flight(admin, name) for name in names) and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
                dropped += drop_databases(admin, look(admin)[1])
            record.note(dropped=dropped)
        return dropped


def _is_of(snapshot: str, name: str | None, version: str | None) -> bool:
    """Tell whether a template's mark (``NAME VERSION``) is meant."""
    wanted = [one for one in (name, version) if one is not None]
    return snapshot.split()[: len(wanted)] == wanted
