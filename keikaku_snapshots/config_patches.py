"""The configuration of data patches: ``config/data_patches.yml`` into the values that the engine takes.

Everything that is wrong is listed at once with its path, and nothing runs: unknown keys, unknown patches,
wrong parameters, windows, times and time zones, and secrets that are named as required and not there.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keikaku_snapshots.config_patches_checks import load_patches, patch_problems, value_problems
from keikaku_snapshots.config_patches_schema import SHIPPED, PatchEntry, PatchesFile
from keikaku_snapshots.config_reading import find_file, read_file, refusal, validate
from keikaku_snapshots.patches.schedule import ScheduleEntry
from keikaku_snapshots.patches.settings import (
    AuditSettings,
    Channel,
    EngineSettings,
    NotifySettings,
    PatchSettings,
)
from keikaku_snapshots.patches.windows import Window, Windows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keikaku_snapshots.patches.registry import DataPatchRegistry

#: Where the file is looked for when none is named; relative to the working directory.
DEFAULT_FILES: Final = (Path("data_patches.yml"), Path("config/data_patches.yml"))
FILE_VARIABLE: Final = "KEIKAKU_PATCH_CONFIG"

#: Keys whose names carry no unit in the file.
_UNITS: Final = {
    "memory_limit": "memory_limit_mb",
    "max_runtime": "max_runtime_s",
    "estimated_duration": "estimated_duration_s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchConfiguration:
    """What `load_patch_configuration` found."""

    #: The file it was read from, if there was one.
    path: Path | None = None
    #: How the patches are run that the file or this library names.
    patches: Mapping[str, PatchSettings] = field(default_factory=dict)
    #: What all runs share.
    engine: EngineSettings = field(default_factory=EngineSettings)
    #: How the audit log is kept.
    audit: AuditSettings = field(default_factory=AuditSettings)
    #: Where messages go, and how.
    notify: NotifySettings = field(default_factory=NotifySettings)
    #: When runs may work.
    windows: Windows = field(default_factory=Windows)
    #: Runs that the worker starts by itself.
    schedule: tuple[ScheduleEntry, ...] = ()
    #: Own patches: modules or files.
    patch_modules: tuple[str, ...] = ()
    #: The patches that there are; None when they were not asked for.
    registry: DataPatchRegistry | None = None

    def settings_of(self, name: str) -> PatchSettings:
        """Return how a patch is run.

        Args:
            name: The patch.

        Returns:
            What is configured for it; the defaults when nothing is.
        """
        return self.patches.get(name, PatchSettings())


def load_patch_configuration(
    path: Path | str | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    registry: DataPatchRegistry | None = None,
    with_patches: bool = True,
) -> PatchConfiguration:
    """Read the configuration of data patches.

    Args:
        path: The file; when None, ``KEIKAKU_PATCH_CONFIG``, then `DEFAULT_FILES`, then the defaults without
            a file.
        environment: Where the secrets are looked up; the process's own environment when None.
        registry: The patches there are; when None, the shipped ones, those of packages and ``patch_modules``.
        with_patches: False loads no patches and does not look at their names and parameters: a run can be
            paused or rolled back while the module of a patch is broken.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is wrong; all of it is listed.
    """
    environment = os.environ if environment is None else environment
    file = find_file(
        path, environment, variable=FILE_VARIABLE, option="--patch-config", default_files=DEFAULT_FILES
    )
    problems: list[str] = []
    data = _with_shipped(read_file(file, problems)) if file else {}
    # Without a file nothing heavy is loaded, and the defaults need no check.
    content = validate(PatchesFile, data, problems) if data or problems else PatchesFile()
    problems += value_problems(data, environment)
    if with_patches:
        registry = registry or load_patches(data, problems)
        if registry is not None:
            problems += patch_problems(data, registry)
    if problems or content is None:
        raise refusal(
            problems,
            str(file) if file else "the environment",
            hint="Correct every line listed above; config/data_patches.yml shows all keys with comments.",
            hint_ja="上記の項目をすべて修正してください。config/data_patches.yml に全項目の説明があります。",
        )
    return _configuration(content, file, registry)


def _with_shipped(data: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a file that names a shipped patch does not say of it."""
    patches = data.get("patches")
    if patches is None:
        return {key: value for key, value in data.items() if key != "patches"}
    if not isinstance(patches, dict):
        return data
    filled: dict[Any, Any] = {**SHIPPED, **patches}
    for name, defaults in SHIPPED.items():
        given = filled[name]
        if given is None or isinstance(given, dict):
            filled[name] = {**defaults, **(given or {})}
    return {**data, "patches": {name: {} if entry is None else entry for name, entry in filled.items()}}


def _configuration(
    content: PatchesFile, file: Path | None, registry: DataPatchRegistry | None
) -> PatchConfiguration:
    scheduling, security = content.scheduling, content.security
    return PatchConfiguration(
        path=file,
        patches={name: _settings(entry) for name, entry in content.patches.items()},
        engine=EngineSettings(**dataclasses.asdict(content.engine)),
        audit=AuditSettings(
            log_encryption=security.log_encryption,
            audit_retention_days=security.audit_retention_days,
            key_variable=security.audit_key_variable,
            old_keys_variable=security.audit_old_keys_variable,
            key_file=security.audit_key_file,
            on_failure=security.on_audit_failure,
        ),
        notify=NotifySettings(
            channels=tuple(
                Channel(name=name, **_fields(channel))
                for name, channel in security.notification_channels.items()
            ),
            **_fields(security.delivery),
        ),
        windows=Windows(
            tuple(
                Window(
                    days=window.days,
                    start=window.start,
                    end=window.end,
                    time_zone=window.timezone or scheduling.default_timezone,
                )
                for window in scheduling.maintenance_windows
            )
        ),
        schedule=tuple(
            ScheduleEntry(
                name=item.name or item.patch,
                patch=item.patch,
                cron=item.cron,
                time_zone=item.timezone or scheduling.default_timezone,
                parameters=dict(item.parameters),
            )
            for item in scheduling.schedule
        ),
        patch_modules=content.patch_modules,
        registry=registry,
    )


def _settings(entry: PatchEntry) -> PatchSettings:
    return PatchSettings(**{_UNITS.get(name, name): value for name, value in _fields(entry).items()})


def _fields(group: Any) -> dict[str, Any]:
    return {item.name: getattr(group, item.name) for item in dataclasses.fields(group)}
