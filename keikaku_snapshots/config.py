"""The configuration: YAML and environment into frozen values, every problem at once.

`Settings` is the schema. A value comes from, in this order: the option on the
command line or the argument in code (the caller overrides the field), the
environment (``KEIKAKU_`` and the path in capitals, such as
``KEIKAKU_RETRY_ATTEMPTS``), the file, the default.

The outside text is checked by pydantic; everything behind this module sees
frozen dataclasses only.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from keikaku_snapshots.errors import ConfigurationError, NoDatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

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
OTHER_VARIABLES = frozenset({"KEIKAKU_DB_URL", "KEIKAKU_CONFIG", "KEIKAKU_LANG"})

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
    file = _find_file(path, environment)
    problems: list[str] = []
    data = _read_file(file, problems) if file else {}
    overrides, warnings = _from_environment(environment, problems)
    if not data and not overrides and not problems:
        return Loaded(Settings(), file, tuple(warnings))
    settings = _validate(_merge(data, overrides), overrides, problems)
    if problems or settings is None:
        source = str(file) if file else "the environment"
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigurationError(
            f"the configuration in {source} has {count}", found="\n".join(problems), problems=problems
        )
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


def _find_file(path: Path | str | None, environment: Mapping[str, str]) -> Path | None:
    named = path if path is not None else environment.get("KEIKAKU_CONFIG")
    if named is not None:
        if not Path(named).is_file():
            raise ConfigurationError(
                "the configuration file does not exist",
                found=f"looked for {str(named)!r}",
                hint="Correct --config or KEIKAKU_CONFIG, or leave it out to use the defaults.",
            )
        return Path(named)
    return next((file for file in DEFAULT_FILES if file.is_file()), None)


def _read_file(file: Path, problems: list[str]) -> dict[str, Any]:
    import yaml

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("the configuration file cannot be read", found=f"{file}: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _report_duplicates(node, "", problems)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigurationError(
            "the configuration file is no YAML",
            found=f"{file}: {place}{getattr(error, 'problem', None) or type(error).__name__}",
            hint="Correct the line named above; indent with spaces, not tabs.",
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        problems.append(f"(top level): must be keys and values, got {_shown(data)}")
        return {}
    return data


def _report_duplicates(node: Any, path: str, problems: list[str]) -> None:
    """Find keys that stand twice; YAML itself would silently keep the last."""
    pairs = getattr(node, "value", None)
    if getattr(node, "id", "") == "sequence":
        for index, child in enumerate(pairs or []):
            _report_duplicates(child, f"{path}[{index}].", problems)
    if getattr(node, "id", "") != "mapping":
        return
    seen: dict[str, int] = {}
    for key, value in pairs or []:
        name = str(key.value)
        line = key.start_mark.line + 1
        if name in seen:
            problems.append(f"{path}{name}: stands twice, in line {seen[name]} and line {line}")
        seen.setdefault(name, line)
        _report_duplicates(value, f"{path}{name}.", problems)


def _from_environment(
    environment: Mapping[str, str], problems: list[str]
) -> tuple[dict[str, str], list[str]]:
    """Texts by path, and warnings about variables that mean nothing."""
    known = {item.variable: item.path for item in schema() if item.variable}
    found: dict[str, str] = {}
    warnings: list[str] = []
    for name in sorted(environment):
        if name in known and not environment[name].strip():
            # Half of these come from an unset shell variable, and an empty
            # list of protected words would protect nothing.
            problems.append(f"{known[name]}: {name} is set but empty; unset it or give it a value")
        elif name in known:
            found[known[name]] = environment[name]
        elif (
            name.startswith("KEIKAKU_")
            and name not in OTHER_VARIABLES
            and not name.startswith(FOREIGN_PREFIXES)
        ):
            warnings.append(f"the variable {name} is unknown and has no effect{_suggestion(name, known)}")
    return found, warnings


def _merge(data: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    merged = dict(data)
    kinds = {item.path: item.expected for item in schema()}
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


def _validate(data: dict[str, Any], overrides: Mapping[str, str], problems: list[str]) -> Settings | None:
    import json

    from pydantic import TypeAdapter, ValidationError

    # Strict JSON mode: lists become tuples and texts paths, but "3" is no
    # integer and true is no number.
    before = len(problems)
    text = json.dumps(_json_ready(data, "", problems))
    if len(problems) > before:
        text = "{}"
    try:
        settings = TypeAdapter(Settings).validate_json(text, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        problems.extend(_sentence(detail, overrides) for detail in details)
        _check_scales(data.get("scales"), problems)
        return None
    _check_scales(data.get("scales"), problems)
    _check_together(settings, problems)
    return settings


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


def _json_ready(data: Any, path: str, problems: list[str]) -> Any:
    """Make what YAML knows and JSON does not into text; numbers that no limit can hold are problems."""
    if isinstance(data, dict):
        return {
            str(key): _json_ready(value, f"{path}.{key}".lstrip("."), problems) for key, value in data.items()
        }
    if isinstance(data, list):
        return [_json_ready(value, f"{path}.{index}", problems) for index, value in enumerate(data)]
    if isinstance(data, float) and not math.isfinite(data):
        problems.append(f"{path}: must be a finite number, got {data}")
        return None
    return data if isinstance(data, str | int | float | bool | None) else str(data)


def _sentence(detail: ErrorDetails, overrides: Mapping[str, str]) -> str:
    location = [
        str(part) for part in detail["loc"] if not str(part).startswith(("function-", "constrained-"))
    ]
    path = ".".join(location)
    source = f" (from {variable_of(path)})" if path in overrides else ""
    fields = {item.path: item for item in schema()}
    if detail["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        *groups, name = location
        prefix = "".join(group + "." for group in _without_names(groups))
        known = [known[len(prefix) :] for known in fields if known.startswith(prefix)]
        return f"{path}: unknown key{_suggestion(name, [key for key in known if '.' not in key])}"
    # The innermost setting that is known: an item of a list is not, its list is.
    known_path = _without_names(location)
    while known_path and ".".join(known_path) not in fields:
        known_path.pop()
    expected = fields[".".join(known_path)].expected if known_path else "keys and values"
    if expected in {"a group", "a table"}:
        expected = "keys and values"
    expected = expected.removesuffix(" or null")
    return f"{path}: must be {expected}, got {_shown(detail['input'])}{source}"


def _without_names(location: list[str]) -> list[str]:
    """Put NAME where the user's own names stand, as `schema` does."""
    if len(location) > 1 and location[0] == "scales":
        return ["scales", "NAME", *location[2:]]
    return location


def _suggestion(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    limit = 80
    return text if len(text) <= limit else text[:limit] + "…"
