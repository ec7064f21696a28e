"""The configuration: YAML and environment into frozen values, every problem at once.

`Settings` is the schema. A value comes from, in this order: the option on the
command line or the argument in code (the caller overrides the field), the
environment (``KEIKAKU_`` and the path in capitals, such as
``KEIKAKU_RETRY_ATTEMPTS``), the file, the default.

The outside text is checked by pydantic; everything behind this module sees
frozen dataclasses only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.config_reading import find_file, read_file, refusal, suggestion, validate
from keikaku_snapshots.config_schema import (
    GenerateSettings,
    RetentionSettings,
    RetrySettings,
    ScaleSettings,
    SchemaField,
    Settings,
    TimeoutSettings,
    schema,
    variable_of,
)
from keikaku_snapshots.errors import NoDatabaseError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DATABASE_VARIABLES",
    "GenerateSettings",
    "Loaded",
    "RetentionSettings",
    "RetrySettings",
    "ScaleSettings",
    "SchemaField",
    "Settings",
    "TimeoutSettings",
    "find_database_url",
    "load_settings",
    "schema",
]

#: Where a database URL is looked for when none is given, in this order.
DATABASE_VARIABLES = ("KEIKAKU_DB_URL", "PERFORMANCE_TEST_DATABASE_URL", "TEST_DATABASE_URL")

#: Where the file is looked for when none is named; relative to the working directory.
DEFAULT_FILES = (Path("keikaku.yml"), Path("config/keikaku.yml"))

#: Variables of ours that are no settings; anything else beginning with
#: ``KEIKAKU_`` is reported, because a misspelt setting would be silent.
OTHER_VARIABLES = frozenset(
    {
        "KEIKAKU_DB_URL",
        "KEIKAKU_CONFIG",
        "KEIKAKU_LANG",
        "KEIKAKU_PATCH_CONFIG",
        "KEIKAKU_AUDIT_KEY",
        "KEIKAKU_AUDIT_OLD_KEYS",
        "KEIKAKU_SLACK_URL",
        "KEIKAKU_EMAIL_URL",
    }
)

#: Variables for the test suite and the benchmarks, never read here.
FOREIGN_PREFIXES = ("KEIKAKU_TEST_", "KEIKAKU_BENCH_")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load_settings` found."""

    #: The settings.
    settings: Settings
    #: The file they were read from, if there was one.
    path: Path | None
    #: Things to tell the user that are no errors, such as an unknown variable.
    warnings: tuple[str, ...]


def load_settings(path: Path | str | None = None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Read the configuration file and the environment.

    Args:
        path: The file; when None, ``KEIKAKU_CONFIG``, then `DEFAULT_FILES`,
            then the defaults without a file.
        environment: The environment; the process's own when None.

    Returns:
        The settings, where they came from, and warnings.

    Raises:
        ConfigurationError: The file cannot be read, or values are wrong; all
            of them are listed with their paths.
    """
    environment = os.environ if environment is None else environment
    file = find_file(
        path,
        environment,
        variable="KEIKAKU_CONFIG",
        option="--config",
        default_files=DEFAULT_FILES,
    )
    problems: list[str] = []
    data = read_file(file, problems) if file else {}
    overrides, warnings = _from_environment(environment, problems)
    if not data and not overrides and not problems:
        return Loaded(Settings(), file, tuple(warnings))
    merged = _merge(data, overrides)
    settings = validate(
        Settings, merged, problems, lambda path: f" (from {variable_of(path)})" if path in overrides else ""
    )
    _check_scales(merged.get("scales"), problems)
    if settings is not None:
        _check_together(settings, problems)
    if problems or settings is None:
        raise refusal(problems, str(file) if file else "the environment")
    return Loaded(settings, file, tuple(warnings))


def find_database_url(
    given: str | None = None, environment: Mapping[str, str] | None = None
) -> tuple[str, str] | None:
    """Look up the database URL in the documented order.

    Args:
        given: The argument or option, which wins.
        environment: The environment; the process's own when None.

    Returns:
        The URL and the name of where it was found, or None when no database
        is named anywhere.

    Raises:
        NoDatabaseError: A place that would win is there but empty: an unset
            shell variable must never mean another database (FAULTS 42).
    """
    environment = os.environ if environment is None else environment
    if given is not None:
        if not given.strip():
            raise NoDatabaseError(
                "the database URL is empty", found="--db-url (or db_url) was given without a value"
            )
        return given, "--db-url"
    for variable in DATABASE_VARIABLES:
        value = environment.get(variable)
        if value is None:
            continue
        if not value.strip():
            raise NoDatabaseError(
                "the database URL is empty", found=f"{variable} is set but empty; unset it or give it a value"
            )
        return value, variable
    return None


def _from_environment(
    environment: Mapping[str, str], problems: list[str]
) -> tuple[dict[str, str], list[str]]:
    """Texts by path, and warnings about variables that mean nothing."""
    ours = sorted(
        name
        for name in environment
        if name.startswith("KEIKAKU_")
        and name not in OTHER_VARIABLES
        and not name.startswith(FOREIGN_PREFIXES)
    )
    if not ours:
        return {}, []  # what is known takes longer to find out than many a command
    known = {item.variable: item.path for item in schema(explained=False) if item.variable}
    found: dict[str, str] = {}
    warnings: list[str] = []
    for name in ours:
        if name not in known:
            warnings.append(f"the variable {name} is unknown and has no effect{suggestion(name, known)}")
        elif not environment[name].strip():
            # Half of these come from an unset shell variable, and an empty
            # list of protected words would protect nothing.
            problems.append(f"{known[name]}: {name} is set but empty; unset it or give it a value")
        else:
            found[known[name]] = environment[name]
    return found, warnings


def _merge(data: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    merged = dict(data)
    kinds = {item.path: item.expected for item in schema(explained=False)}
    for path, text in overrides.items():
        *groups, name = path.split(".")
        level = merged
        for group in groups:
            below = level.get(group)
            level[group] = dict(below) if isinstance(below, dict) else {}
            level = level[group]
        level[name] = _environment_value(text, kinds[path])
    return merged


def _environment_value(text: str, expected: str) -> Any:
    """Give the text of a variable the type that YAML would give it."""
    if expected.startswith("a list"):
        return [part.strip() for part in text.split(",") if part.strip()]
    if not any(word in expected for word in ("number", "integer", "true or false")):
        return None if text == "null" and expected.endswith("or null") else text
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check_together(settings: Settings, problems: list[str]) -> None:
    """Find what no single value shows."""
    problems.extend(
        f"{path}: must name a directory, got an empty text or the working directory itself"
        for path in ("snapshot_dir", "pg_bin")
        if getattr(settings, path) == Path()
    )
    if settings.spare and not settings.templates:
        problems.append(f"spare: must be 0 where templates is false, got {settings.spare}")
    if settings.retry.wait_min_s > settings.retry.wait_max_s:
        problems.append(
            f"retry.wait_min_s: must not be longer than wait_max_s, "
            f"got {settings.retry.wait_min_s:g} and {settings.retry.wait_max_s:g}"
        )


def _check_scales(scales: Any, problems: list[str]) -> None:
    """Find scales without a size or with two; in the raw data, because other problems leave no settings."""
    for name, scale in scales.items() if isinstance(scales, dict) else ():
        if isinstance(scale, dict) and (scale.get("offices") is None) == (scale.get("units") is None):
            problems.append(f"scales.{name}: needs one of offices and units")
