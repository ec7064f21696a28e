"""What people call snapshots: finding one by the beginning of its version, pins, tags, descriptions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.errors import InvalidNameError, ParameterTypeError, UsageError
from keikaku_snapshots.snapshots.manifest import Snapshot
from keikaku_snapshots.snapshots.names import check_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keikaku_snapshots.snapshots.manifest import Manifest
    from keikaku_snapshots.snapshots.store import SnapshotStore

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
#: No control characters, no blanks at the ends; a tag is shown in one line and typed in a shell.
_TAG = re.compile(r"[^\s,](?:[^\r\n\t,]{0,98}[^\s,])?")


def find_snapshot(store: SnapshotStore, name: str, version: str | None = None) -> Snapshot:
    """Find the newest valid snapshot of a name, or one by its version or the beginning of it.

    Args:
        store: Where.
        name: Its name.
        version: The version, or so much of its beginning that only one fits, such as ``20260131``.

    Returns:
        The snapshot; by version it may be a damaged one.

    Raises:
        SnapshotNotFoundError: There is none.
        UsageError: More than one begins so; they are named.
    """
    check_name(name)
    if version is None:
        return store.find(name)
    if not isinstance(version, str):
        raise ParameterTypeError(f"version must be text, not {type(version).__name__}")
    if not _PREFIX.fullmatch(version):
        raise UsageError(f"version {version[:120]!r} cannot be the beginning of a version")
    found = store.list(name)
    if any(item.version == version for item in found):
        return store.find(name, version)
    fitting = sorted({item.version for item in found if item.version.startswith(version)}, reverse=True)
    if len(fitting) > 1:
        more = f" and {len(fitting) - 10} more" if len(fitting) > 10 else ""
        raise UsageError(
            f"{len(fitting)} versions of {name!r} begin with {version!r}",
            found=", ".join(fitting[:10]) + more,
            hint="Give more of the version.",
        )
    if not fitting:
        raise store.not_found(name, version, found)
    return store.find(name, fitting[0])


def name_and_version(
    store: SnapshotStore, given: str | Snapshot, version: str | None
) -> tuple[str, str | None]:
    """Take a snapshot in the place of its name: exactly its version.

    Args:
        store: Where it must be.
        given: A name, or a snapshot of this directory.
        version: What was given beside it.

    Returns:
        Name and version; a name with its version as they were given.

    Raises:
        UsageError: The snapshot has another version, or is in another directory.
    """
    if not isinstance(given, Snapshot):
        return given, version
    if version not in {None, given.version}:
        raise UsageError(
            f"the snapshot {given} is given with another version {version!r}",
            hint="Leave the version out, or give the name in place of the snapshot.",
        )
    if given.path.parent != store.directory and not given.path.parent.samefile(store.directory):
        raise UsageError(
            f"the snapshot {given} is in another directory",
            found=f"{given.path.parent}, not {store.directory}",
            hint="Use a SnapshotManager of that directory.",
        )
    return given.name, given.version


def pin(store: SnapshotStore, snapshot: Snapshot, *, pinned: bool) -> Snapshot:
    """Keep a version from retention, or let it go again.

    Args:
        store: Where it is.
        snapshot: The version.
        pinned: False lets it go.

    Returns:
        The version as it is now.
    """
    return store.change(snapshot, pinned=bool(pinned))


def describe(store: SnapshotStore, snapshot: Snapshot, text: str) -> Snapshot:
    """Change the description of a version.

    Args:
        store: Where it is.
        snapshot: The version.
        text: What it is for.

    Returns:
        The version as it is now.
    """
    return store.change(snapshot, description=text)


def check_description(text: object) -> None:
    """Refuse what is no description.

    Args:
        text: The description.

    Raises:
        ParameterTypeError: It is no text.
    """
    if not isinstance(text, str):
        raise ParameterTypeError(f"the description must be text, not {type(text).__name__}")


def tag(
    store: SnapshotStore, snapshot: Snapshot, add: Iterable[str] = (), remove: Iterable[str] = ()
) -> Snapshot:
    """Add and remove tags of a version.

    Args:
        store: Where it is.
        snapshot: The version.
        add: Words to add; those it has stay where they are.
        remove: Words to remove; one that it does not have is no error.

    Returns:
        The version as it is now.

    Raises:
        InvalidNameError: A tag is empty, too long, or has a comma or a line break.
    """
    added = check_tags(add)
    removed = set(check_tags(remove))

    def changed(manifest: Manifest) -> dict[str, Any]:
        # A dictionary keeps the order and drops doubles.
        return {"tags": [word for word in dict.fromkeys([*manifest.tags, *added]) if word not in removed]}

    return store.change(snapshot, changed)


def check_tags(tags: Iterable[str]) -> list[str]:
    """Return the tags when they can be ones.

    Args:
        tags: Words.

    Raises:
        ParameterTypeError: One text was given in place of several, or one is no text.
        InvalidNameError: One is empty, longer than 100, or has a comma or a line break.
    """
    if isinstance(tags, str):
        raise ParameterTypeError("tags must be a list of words, not one text")
    words = list(tags)
    for word in words:
        if not isinstance(word, str):
            raise ParameterTypeError(f"a tag must be text, not {type(word).__name__}")
        if not _TAG.fullmatch(word) or not word.isprintable():
            raise InvalidNameError(
                f"tag {word[:120]!r} cannot be used",
                hint="Use 1 to 100 printable characters without commas, line breaks and blanks at the ends.",
            )
    return words
