"""`keikaku patch`: the group, and what looks at patches without running one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from keikaku_snapshots.cli.groups import HelpfulGroup
from keikaku_snapshots.cli.patch_audit import audit
from keikaku_snapshots.cli.patch_life import cancel, pause, resume, rollback
from keikaku_snapshots.cli.patch_run import approve, rehearse, run
from keikaku_snapshots.cli.patch_session import Door, complete_patch_name, patch_config_option
from keikaku_snapshots.cli.patch_status import report, status
from keikaku_snapshots.cli.patch_worker import reap, worker
from keikaku_snapshots.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from keikaku_snapshots.cli.output import Output
    from keikaku_snapshots.patches.definition import Patch


@click.group("patch", cls=HelpfulGroup)
def patch() -> None:
    """Change live data in small, verified, reversible batches.

    A run is a dry run unless --execute is said. The database must always be
    named; --embedded names the embedded one.
    """


@patch.command(
    "list",
    cls=Command,
    database=False,
    examples=[
        ("keikaku patch list", "Which patches there are, and what each is for."),
        ("keikaku patch list --json", "For a script."),
    ],
)
@patch_config_option
@pass_session
def list_(session: Session, *, patch_config: str | None) -> None:
    """List the patches: shipped ones, those of packages, those of the configuration."""
    door = Door(session, patch_config)
    found = door.registry.list()
    if session.output.as_json:
        session.output.document([_summary(door, one) for one in found])
        return
    rows = [(one.name, str(one.version), ", ".join(one.tables()), door.description(one)) for one in found]
    session.output.table(("PATCH", "VERSION", "TABLES", "WHAT FOR"), rows, right=frozenset({1}))


@patch.command(
    "show",
    cls=Command,
    database=False,
    examples=[
        ("keikaku patch show inventory_price_adjustment", "Its tables, parameters and settings."),
    ],
)
@click.argument("name", shell_complete=complete_patch_name)
@patch_config_option
@pass_session
def show(session: Session, *, name: str, patch_config: str | None) -> None:
    """Show what a patch does, its parameters and how it is run."""
    door = Door(session, patch_config)
    one = door.registry.find(name)
    summary = _summary(door, one)
    if session.output.as_json:
        session.output.document(summary)
        return
    output = session.output
    output.data(f"{one.name} version {one.version}: {door.description(one)}")
    _section(
        output,
        "",
        {"tables": ", ".join(one.tables()), **_declared(one), "source": summary["source_hash"][:16]},
    )
    _tell_parameters(output, summary["parameters"])
    output.data("")
    output.data("settings")
    settings = summary["settings"].items()
    _section(output, "  ", {key: value for key, value in settings if value not in (None, "", (), {})})


def _tell_parameters(output: Output, parameters: list[dict[str, Any]]) -> None:
    output.data("")
    output.data("parameters, as --param NAME=VALUE" if parameters else "it takes no parameters")
    width = max((len(item["name"]) for item in parameters), default=0)
    for item in parameters:
        words = [item["type"], *item["limits"]]
        words.append("needed" if item["required"] else f"default {item['default']}")
        about = f"  ({item['description']})" if item["description"] else ""
        output.data(f"  {item['name']:<{width}}  {', '.join(words)}{about}")


def _section(output: Output, indent: str, entries: dict[str, Any]) -> None:
    width = max(len(name) for name in entries)
    for name, value in entries.items():
        output.data(f"{indent}{name:<{width}}  {_said(value)}")


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _declared(one: Patch) -> dict[str, Any]:
    """What a patch of one table says of itself."""
    found: dict[str, Any] = {"kind": _kind(one)}
    for name in ("key", "where", "set", "reads", "writes"):
        value = getattr(one, name, None)
        if value:
            found[name] = (
                "; ".join(f"{column} = {text}" for column, text in value.items())
                if isinstance(value, dict)
                else value
            )
    return found


def _kind(one: Patch) -> str:
    from keikaku_snapshots.patches.definition import RowPatch, SqlPatch

    if isinstance(one, SqlPatch):
        return "set-based (SqlPatch)"
    return "row-wise (RowPatch)" if isinstance(one, RowPatch) else "own SQL (StepPatch), no dry run"


def _summary(door: Door, one: Patch) -> dict[str, Any]:
    import dataclasses

    from keikaku_snapshots.patches.source import source_hash

    return {
        "name": one.name,
        "version": one.version,
        "kind": _kind(one),
        "description": door.description(one),
        "tables": list(one.tables()),
        "source_hash": source_hash(one),
        "parameters": _parameters(one),
        "settings": dataclasses.asdict(door.settings_of(one.name)),
    }


#: What pydantic calls a limit, and what people do.
_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "at least", "max_length": "at most"}


def _parameters(one: Patch) -> list[dict[str, Any]]:
    if one.params is None:
        return []
    found = []
    for name, item in one.params.model_fields.items():
        required = item.is_required()
        default = None if required else item.get_default(call_default_factory=True)
        found.append(
            {
                "name": name,
                "type": getattr(item.annotation, "__name__", str(item.annotation)),
                "limits": [
                    f"{_LIMITS[name]} {getattr(one, name)}"
                    for one in item.metadata
                    for name in _LIMITS
                    if hasattr(one, name)
                ],
                "required": required,
                "default": default if default is None else str(default),
                "description": item.description or "",
            }
        )
    return found


for command in (run, rehearse, approve, status, pause, resume, cancel, rollback, reap, worker, report, audit):
    patch.add_command(command)
