"""What is wrong with ``config/data_patches.yml`` beyond the types of its values.

All of it looks at the raw data and passes over what has a wrong type, so that one mistake does not hide
another one: a misspelt key and an unknown patch are listed together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from keikaku_snapshots.config_patches_schema import (
    SHIPPED,
    DeliveryGroup,
    EngineGroup,
    SchedulingGroup,
    SecurityGroup,
)
from keikaku_snapshots.config_reading import suggestion
from keikaku_snapshots.errors import KeikakuError, UsageError
from keikaku_snapshots.patches.schedule import cron_problem
from keikaku_snapshots.patches.windows import time_zone_problems, window_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keikaku_snapshots.patches.registry import DataPatchRegistry

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def value_problems(data: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Find what no type shows, without looking at the patches themselves.

    Args:
        data: The file.
        environment: Where the secrets are looked up.

    Yields:
        Sentences that begin with a path.
    """
    yield from _scheduling_problems(_group(data, "scheduling"))
    yield from _secret_problems(_group(data, "security"), environment)
    for name, entry in _groups(data, "patches"):
        for table in _texts(entry.get("target_tables")):
            if not all(table.partition(".")):
                yield f"patches.{name}.target_tables: must be tables as schema.table, got {table!r}"
    engine, delivery = _group(data, "engine"), _group(_group(data, "security"), "delivery")
    lease = _number(engine, "lease_s", EngineGroup().lease_s)
    heartbeat = _number(engine, "heartbeat_s", EngineGroup().heartbeat_s)
    if heartbeat * 2 > lease:
        yield f"engine.lease_s: must be at least twice heartbeat_s, got {lease:g} and {heartbeat:g}"
    backoff = _number(delivery, "backoff_s", DeliveryGroup().backoff_s)
    longest = _number(delivery, "backoff_max_s", DeliveryGroup().backoff_max_s)
    if backoff > longest:
        yield (
            "security.delivery.backoff_s: must not be longer than backoff_max_s, "
            f"got {backoff:g} and {longest:g}"
        )


def load_patches(data: Mapping[str, Any], problems: list[str]) -> DataPatchRegistry | None:
    """Load the patches that there are.

    Args:
        data: The file.
        problems: A sentence for each module that cannot be loaded is added to it.

    Returns:
        The patches; None when some could not be loaded, because those would be taken for unknown.
    """
    from keikaku_snapshots.patches.registry import DataPatchRegistry

    try:
        registry = DataPatchRegistry()
    except KeikakuError as error:
        problems.append(f"(installed patches): {_line(error)}")
        return None
    is_whole = True
    for number, module in enumerate(_texts(data.get("patch_modules"))):
        try:
            registry.add_module(module)
        except KeikakuError as error:
            problems.append(f"patch_modules.{number}: {_line(error)}")
            is_whole = False
    return registry if is_whole else None


def patch_problems(data: Mapping[str, Any], registry: DataPatchRegistry) -> Iterator[str]:
    """Find patches that are not there, and parameters that they do not take.

    Args:
        data: The file.
        registry: The patches that there are.

    Yields:
        Sentences that begin with a path.
    """
    from keikaku_snapshots.patches.parameters import read_parameters

    patches = {patch.name: patch for patch in registry.list()}
    named = data.get("patches")
    for name in named if isinstance(named, dict) else ():
        if name not in patches and name not in SHIPPED:
            yield f"patches.{name}: unknown patch{suggestion(str(name), patches)}"
    entries = dict(_groups(data, "patches"))
    for number, item in _items(_group(data, "scheduling"), "schedule"):
        path, name = f"scheduling.schedule.{number}", item.get("patch")
        if not isinstance(name, str):
            continue
        if name not in patches:
            yield f"{path}.patch: unknown patch {name!r}{suggestion(name, patches)}"
            continue
        given = _group(entries.get(name, {}), "parameters") | _group(item, "parameters")
        try:
            read_parameters(patches[name], given)
        except UsageError as error:
            yield from (f"{path}.{line}" for line in error.found.splitlines())


def _scheduling_problems(group: Mapping[str, Any]) -> Iterator[str]:
    zone = _text(group, "default_timezone", SchedulingGroup().default_timezone)
    yield from time_zone_problems(zone, "scheduling.default_timezone: ")
    for number, window in _items(group, "maintenance_windows"):
        path = f"scheduling.maintenance_windows.{number}"
        days = window.get("days")
        found = window_problems(
            _texts(days) if isinstance(days, list) else ("sunday",),
            _text(window, "start", "00:00"),
            _text(window, "end", "24:00"),
        )
        yield from (f"{path}.{name}: {text}" for name, text in found)
        if isinstance(window.get("timezone"), str):
            yield from time_zone_problems(window["timezone"], f"{path}.timezone: ")
    seen: dict[str, int] = {}
    for number, item in _items(group, "schedule"):
        path = f"scheduling.schedule.{number}"
        if problem := cron_problem(_text(item, "cron", "* * * * *")):
            yield f"{path}.cron: {problem}"
        if isinstance(item.get("timezone"), str):
            yield from time_zone_problems(item["timezone"], f"{path}.timezone: ")
        name = _text(item, "name", _text(item, "patch", f"({number})"))
        if not name.strip():
            yield f"{path}.name: must not be empty"
        if name in seen:
            yield f"{path}.name: must be another one than that of {seen[name]}, got {name!r}"
        seen.setdefault(name, number)


def _secret_problems(group: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Find secrets that are not there; what is there is never shown."""
    defaults = SecurityGroup()
    secrets = [
        (
            "audit_key_variable",
            _text(group, "audit_key_variable", defaults.audit_key_variable),
            group.get("audit_key_required") is True,
        ),
        (
            "audit_old_keys_variable",
            _text(group, "audit_old_keys_variable", defaults.audit_old_keys_variable),
            False,
        ),
    ]
    if "notification_channels" in group:
        for name, channel in _groups(group, "notification_channels"):
            if isinstance(channel.get("url_variable"), str):
                path = f"notification_channels.{name}.url_variable"
                secrets.append((path, channel["url_variable"], channel.get("required") is True))
    else:
        for name, default in defaults.notification_channels.items():
            secrets.append((f"notification_channels.{name}.url_variable", default.url_variable, False))
    for path, variable, is_required in secrets:
        if not _VARIABLE.fullmatch(variable):
            # Somebody may have written the secret itself here.
            yield f"security.{path}: must be the name of an environment variable, not its value"
        elif variable not in environment:
            if is_required:
                yield f"security.{path}: {variable} is not set, but required"
        elif not environment[variable].strip():
            yield f"security.{path}: {variable} is set but empty; unset it or give it a value"


def _line(error: KeikakuError) -> str:
    return ": ".join([error.what, *filter(None, [error.found.replace("\n", "; ")])])


def _group(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What stands under a key, if these are keys and values."""
    group = data.get(name)
    return group if isinstance(group, dict) else {}


def _groups(data: Mapping[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a table that are keys and values."""
    for key, entry in _group(data, name).items():
        if isinstance(entry, dict):
            yield str(key), entry


def _items(data: Mapping[str, Any], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The items of a list that are keys and values, with their numbers."""
    items = data.get(name)
    for number, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield number, item


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _text(group: Mapping[str, Any], name: str, default: str) -> str:
    value = group.get(name)
    return value if isinstance(value, str) else default


def _number(group: Mapping[str, Any], name: str, default: float) -> float:
    value = group.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default
