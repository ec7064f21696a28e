"""`keikaku list` and `show`: look at snapshots; no database is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.output import plain, size
from keikaku_snapshots.cli.session import Command, Session, complete_snapshot_name, pass_session

if TYPE_CHECKING:
    from keikaku_snapshots.snapshots.manifest import Snapshot


@click.command(
    "list",
    cls=Command,
    database=False,
    examples=[
        ("keikaku list", "All of them, newest first."),
        ("keikaku list medium_100_offices --json", "One name, with every field, for a script."),
    ],
)
@click.argument("name", required=False, shell_complete=complete_snapshot_name)
@pass_session
def list_(session: Session, name: str | None) -> None:
    """List the snapshots, newest first; a damaged one with the reason.

    Where snapshots share parts, OWN is what deleting one of them would free, SHARED what others have too.
    """
    with session.manager(database=False) as manager:
        snapshots = manager.list_snapshots(name)
    if session.output.as_json:
        session.output.document([snapshot_document(snapshot) for snapshot in snapshots])
        return
    if not snapshots:
        which = f"no snapshot {name!r}" if name else "no snapshots"
        session.output.say(f"{which} in {session.snapshot_dir}; `keikaku create NAME` makes one")
        return
    rows = []
    sharing = any(snapshot.shared_bytes for snapshot in snapshots)
    for snapshot in snapshots:
        counted = f"{sum(snapshot.row_counts.values()):,}" if snapshot.row_counts else ""
        state = "ok" if snapshot.is_valid else f"damaged: {snapshot.problem}"
        state += ", pinned" if snapshot.pinned else ""
        made = snapshot.created_at.strftime("%Y-%m-%d %H:%M:%S")
        rows.append(
            (
                snapshot.name,
                snapshot.version,
                made,
                size(snapshot.size_bytes),
                *((size(snapshot.own_bytes), size(snapshot.shared_bytes)) if sharing else ()),
                counted,
                " ".join(filter(None, (snapshot.format, _compression(snapshot)))),
                state,
            )
        )
    sizes = ("SIZE", "OWN", "SHARED") if sharing else ("SIZE",)
    headers = ("NAME", "VERSION", "MADE (UTC)", *sizes, "ROWS", "FORMAT", "STATE")
    session.output.table(headers, rows, right=frozenset(range(3, 4 + len(sizes))))


@click.command(
    "show",
    cls=Command,
    database=False,
    examples=[
        ("keikaku show medium_100_offices", "The newest valid version."),
        ("keikaku show medium_100_offices --version 20250131_031500 --json", "An exact one, for a script."),
    ],
)
@click.argument("name", shell_complete=complete_snapshot_name)
@click.option(
    "--version", metavar="VERSION", help="A version, or the beginning of it.  [default: the newest valid one]"
)
@pass_session
def show(session: Session, name: str, version: str | None) -> None:
    """Show everything that is known of one snapshot."""
    with session.manager(database=False) as manager:
        snapshot = manager.get_snapshot(name, version)
    document = snapshot_document(snapshot)
    if session.output.as_json:
        session.output.document(document)
        return
    manifest = document.pop("manifest") or {}
    counts = document.pop("row_counts")
    document["size"] = size(document.pop("size_bytes"))
    own_bytes, shared_bytes = document.pop("own_bytes"), document.pop("shared_bytes")
    parts = manifest.get("parts") or {}
    if parts:
        document |= {"own": size(own_bytes), "shared": size(shared_bytes), "parts": f"{len(parts):,}"}
    # The schema's text is for comparing, not for reading; --json has it, and the parts.
    hidden = {"schema_objects", "row_counts", "sequences", "size_bytes", *document}
    document |= {
        key: value for key, value in manifest.items() if key not in hidden and value not in (None, "", [], {})
    }
    width = max(map(len, document))
    for key, value in document.items():
        session.output.data(f"{key:<{width}}  {_in_words(value)}")
    if counts:
        session.output.data("")
        rows = [(table, f"{count:,}") for table, count in counts.items()]
        session.output.table(("TABLE", "ROWS"), rows, right=frozenset({1}))


def _compression(snapshot: Snapshot) -> str | None:
    return snapshot.manifest.compression if snapshot.manifest else None


def snapshot_document(snapshot: Any) -> dict[str, Any]:
    """Return every field of a snapshot as JSON has it, paths and times as text.

    Args:
        snapshot: The snapshot.
    """
    document: dict[str, Any] = plain(snapshot)
    return document


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    return str(value)
