"""What a `SnapshotManager` does with files alone: look, check, name, mark, delete.

None of these methods needs a database.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from keikaku_snapshots.errors import PruneIncompleteError, SnapshotNotFoundError
from keikaku_snapshots.snapshots.labels import name_and_version
from keikaku_snapshots.snapshots.names import check_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from keikaku_snapshots.snapshots.audit import AuditLog
    from keikaku_snapshots.snapshots.manifest import Snapshot
    from keikaku_snapshots.snapshots.reading import OpenSnapshot
    from keikaku_snapshots.snapshots.retention import PrunePlan, RetentionPolicy
    from keikaku_snapshots.snapshots.store import Snapshots, SnapshotStore
    from keikaku_snapshots.snapshots.verify import Verification


class FileMethods:
    """The part of `SnapshotManager` that looks after the files."""

    _store: SnapshotStore
    _audit: AuditLog
    _lock_wait_s: float
    _pg_bin: Path | None
    _retention: RetentionPolicy | None

    # -- looking ---------------------------------------------------------------------

    def list_snapshots(self, name: str | None = None) -> Snapshots:
        """List snapshots, newest first, damaged ones with their problem.

        Args:
            name: Only those of this name.

        Returns:
            The snapshots.
        """
        return self._store.list(name)

    def get_snapshot(self, name: str | Snapshot, version: str | None = None) -> Snapshot:
        """Find the newest valid snapshot of a name, or one by its version.

        Args:
            name: Its name; or a snapshot, to look at it again.
            version: Its version, or so much of its beginning that only one fits.

        Returns:
            The snapshot; by version it may be a damaged one.

        Raises:
            SnapshotNotFoundError: There is none (a `FileNotFoundError`).
            UsageError: More than one version begins so.
        """
        from keikaku_snapshots.snapshots.labels import find_snapshot

        return find_snapshot(self._store, *name_and_version(self._store, name, version))

    def snapshot_exists(self, name: str) -> bool:
        """Tell whether there is a valid snapshot of this name.

        Args:
            name: Its name.

        Returns:
            True if one can be restored.
        """
        return self._store.latest(name) is not None

    def verify_snapshot(
        self, name: str | Snapshot, version: str | None = None, *, trust: bool = False
    ) -> Verification:
        """Read a snapshot as a whole and compare it with its manifest.

        Args:
            name: Its name, or the snapshot itself.
            version: Its version; the newest one, valid or not, if None.
            trust: Take a file that has no manifest too, and read it as a restore would.

        Returns:
            What was checked.

        Raises:
            SnapshotNotFoundError: There is none.
            SnapshotCorruptError: It is damaged; the text says how.
        """
        from keikaku_snapshots.snapshots.compression import packed_as
        from keikaku_snapshots.snapshots.unpack import read_packed
        from keikaku_snapshots.snapshots.verify import Verification, check_shape

        begun = time.monotonic()
        name, version = name_and_version(self._store, name, version)
        check_name(name)
        found = self._store.list(name)
        snapshot = found[0] if found and version is None else self._store.find(name, version)
        checks = ["manifest", "size", "SHA-256", "header and end"]
        with self._store.reading(snapshot, wait_s=self._lock_wait_s, trust=trust) as opened:
            if trust and opened.snapshot.manifest is None:
                return self._read_on_trust(opened, begun)
            file = opened.check()
            if snapshot.format == "json":
                from keikaku_snapshots.snapshots.rows_file import check_rows_file

                checks[-1] = "JSON read as a whole"
                check_rows_file(opened.fileno(), str(opened.path), opened.snapshot.row_counts)
            elif packed_as(snapshot) is not None:
                read_packed(opened)
                checks.insert(-1, "unpacked size and SHA-256")
            else:
                check_shape(opened.fileno(), snapshot.format, opened.path.name)
            if snapshot.format == "directory":
                checks[-1] = "every part"
            if snapshot.format in {"custom", "directory"}:
                self._read_archive(opened)
                checks.append("archive read as a whole")
            opened.check_unchanged()
        return Verification(snapshot, file.sha256, file.size_bytes, tuple(checks), time.monotonic() - begun)

    def _read_archive(self, opened: OpenSnapshot) -> None:
        """Have pg_restore of the right version read all of it."""
        from keikaku_snapshots.postgres.tools import find_tools
        from keikaku_snapshots.snapshots.archive import major_of
        from keikaku_snapshots.snapshots.dump_files import check_archive

        manifest, descriptor, name = opened.snapshot.manifest, opened.fileno(), opened.path.name
        major = manifest.server_major if manifest else major_of(descriptor, name)
        check_archive(find_tools(major, configured=self._pg_bin), descriptor, name)

    def _read_on_trust(self, opened: OpenSnapshot, begun: float) -> Verification:
        """Read a file without a manifest as a restore of it would before it touches anything."""
        from keikaku_snapshots.snapshots.compression import packed_as
        from keikaku_snapshots.snapshots.dump_script import Script
        from keikaku_snapshots.snapshots.rows_file import check_rows_file
        from keikaku_snapshots.snapshots.unpack import read_packed
        from keikaku_snapshots.snapshots.verify import Verification, check_shape

        snapshot, name = opened.snapshot, opened.path.name
        file = opened.hash()
        if snapshot.format == "json":
            check_rows_file(opened.fileno(), str(opened.path), None)
            checks = ["JSON read as a whole"]
        elif packed_as(snapshot) is not None:
            read_packed(opened)
            checks = ["unpacked", "header and end"]
        else:
            check_shape(opened.fileno(), snapshot.format, name)
            checks = ["header and end"]
        if snapshot.format == "plain" and packed_as(snapshot) is None:
            with Script(opened.fileno(), name) as script:
                checks += ["every statement"] if script.parts else []
        if snapshot.format in {"custom", "directory"}:
            self._read_archive(opened)
            checks.append("archive read as a whole")
        opened.check_unchanged()
        return Verification(snapshot, file.sha256, file.size_bytes, tuple(checks), time.monotonic() - begun)

    # -- naming ----------------------------------------------------------------------

    def rename_snapshot(self, old: str, new: str) -> Snapshot:
        """Give all versions of a snapshot another name; calling it again ends an interrupted rename.

        Args:
            old: Its name now.
            new: The name to be, which no other snapshot has.

        Returns:
            The newest version under its new name.

        Raises:
            SnapshotNotFoundError: There is no valid snapshot of the old name.
            SnapshotExistsError: There are snapshots of the new name.
            SnapshotInUseError: A version is being restored.
        """
        check_name(old)
        with self._audit.recording("rename", old, new_name=check_name(new)):
            return self._store.rename(old, new, wait_s=self._lock_wait_s)

    def pin_snapshot(self, name: str | Snapshot, version: str | None = None, pinned: bool = True) -> Snapshot:
        """Keep a version from retention, or let it go again.

        Args:
            name: Its name, or the snapshot itself.
            version: Its version, or the beginning of it; the newest valid one if None.
            pinned: False lets it go.

        Returns:
            The version as it is now.

        Raises:
            SnapshotNotFoundError: There is none.
        """
        from keikaku_snapshots.snapshots.labels import pin

        snapshot = self.get_snapshot(name, version)
        with self._audit.recording("pin" if pinned else "unpin", snapshot.name, version=snapshot.version):
            return pin(self._store, snapshot, pinned=pinned)

    def tag_snapshot(
        self,
        name: str | Snapshot,
        version: str | None = None,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
    ) -> Snapshot:
        """Add and remove tags of a version.

        Args:
            name: Its name, or the snapshot itself.
            version: Its version, or the beginning of it; the newest valid one if None.
            add: Words to add.
            remove: Words to remove.

        Returns:
            The version as it is now.

        Raises:
            SnapshotNotFoundError: There is none.
            InvalidNameError: A word cannot be a tag.
        """
        from keikaku_snapshots.snapshots.labels import check_tags, tag

        add, remove = check_tags(add), check_tags(remove)
        snapshot = self.get_snapshot(name, version)
        facts = {"added": add or None, "removed": remove or None}
        with self._audit.recording("tag", snapshot.name, version=snapshot.version, **facts):
            return tag(self._store, snapshot, add, remove)

    def describe_snapshot(self, name: str | Snapshot, text: str, version: str | None = None) -> Snapshot:
        """Change the description of a version.

        Args:
            name: Its name, or the snapshot itself.
            text: What it is for; an empty text takes the description away.
            version: Its version, or the beginning of it; the newest valid one if None.

        Returns:
            The version as it is now.

        Raises:
            SnapshotNotFoundError: There is none.
            ParameterTypeError: The description is no text.
        """
        from keikaku_snapshots.snapshots.labels import check_description, describe

        check_description(text)
        snapshot = self.get_snapshot(name, version)
        with self._audit.recording("describe", snapshot.name, version=snapshot.version):
            return describe(self._store, snapshot, text)

    # -- removing --------------------------------------------------------------------

    def delete_snapshot(self, name: str | Snapshot, version: str | None = None) -> bool:
        """Delete one version of a snapshot.

        Args:
            name: Its name, or the snapshot itself.
            version: Its version; the newest valid one if None.

        Returns:
            True when it was deleted, False when there was none.

        Raises:
            SnapshotInUseError: A restore reads it.
        """
        name, version = name_and_version(self._store, name, version)
        try:
            snapshot = self._store.find(name, version)
        except SnapshotNotFoundError:
            return False
        with self._audit.recording("delete", name, version=snapshot.version):
            self._store.delete(snapshot)
        return True

    def delete_old_snapshots(self, name: str, keep_count: int = 3) -> Snapshots:
        """Delete all but the newest valid versions of a snapshot.

        Args:
            name: Exactly this name.
            keep_count: How many to keep, at least 1.

        Returns:
            What was deleted, newest first.
        """
        check_name(name)
        with self._audit.recording("delete", name, keep_count=keep_count) as record:
            deleted = self._store.delete_old(name, keep_count)
            record.note(deleted=[str(snapshot) for snapshot in deleted])
        return deleted

    def prune(
        self, policy: RetentionPolicy | None = None, dry_run: bool = False, *, name: str | None = None
    ) -> PrunePlan:
        """Delete what a retention policy does not keep, and what interrupted runs left.

        The newest valid version of each name and pinned ones always stay; damaged
        ones neither count nor go.

        Args:
            policy: What to keep; the manager's own if None.
            dry_run: Delete nothing.
            name: Only this name; every name if None.

        Returns:
            What stayed and what went, with reasons.

        Raises:
            UsageError: The policy is empty.
            PruneIncompleteError: Some could not be deleted; the others were.
        """
        from keikaku_snapshots.snapshots.prune import prune
        from keikaku_snapshots.snapshots.retention import DEFAULT_POLICY

        policy = policy or self._retention or DEFAULT_POLICY
        if dry_run:
            return prune(self._store, policy, name=name, dry_run=True)
        with self._audit.recording("prune", None if name is None else check_name(name)) as record:
            try:
                done = prune(self._store, policy, name=name)
            except PruneIncompleteError as error:
                record.note(deleted=error.details["plan"].deleted_names)
                raise
            record.note(deleted=done.deleted_names)
        return done
