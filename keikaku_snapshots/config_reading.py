"""Reading a configuration file against a schema of frozen dataclasses, every problem at once.

The outside text is checked by pydantic in strict JSON mode; what a caller gets are the dataclasses of the
schema, or sentences that begin with the path of what is wrong.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keikaku_snapshots.config_schema import NAME, NUMBER, read_bounds, schema
from keikaku_snapshots.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

    from keikaku_snapshots.config_schema import SchemaField

_Kind = TypeVar("_Kind")
#: Letters of a wrong value that are shown.
_SHOWN: Final = 80


def find_file(
    path: Path | str | None,
    environment: Mapping[str, str],
    *,
    variable: str,
    option: str,
    default_files: Sequence[Path],
) -> Path | None:
    """Find the file to read.

    Args:
        path: The one that was named; it must exist.
        environment: Where ``variable`` is looked up.
        variable: Names the file when ``path`` does not; it must exist too.
        option: What ``path`` is called on the command line.
        default_files: Taken when nothing is named: the first that exists.

    Returns:
        The file; None when nothing is named and no default file exists.

    Raises:
        ConfigurationError: The named file does not exist.
    """
    named = path if path is not None else environment.get(variable)
    if named is None:
        return next((file for file in default_files if file.is_file()), None)
    if not Path(named).is_file():
        raise ConfigurationError(
            "the configuration file does not exist",
            found=f"looked for {str(named)!r}",
            hint=f"Correct {option} or {variable}, or leave it out to use the defaults.",
            hint_ja=f"{option} または {variable} を修正するか、省略して既定値を使用してください。",
        )
    return Path(named)


def read_file(file: Path, problems: list[str]) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Args:
        file: The file.
        problems: Keys that stand twice are added to it, and a top level that is no table.

    Returns:
        What stands in it; nothing when it is empty.

    Raises:
        ConfigurationError: It cannot be read, or is no YAML.
    """
    import yaml

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("the configuration file cannot be read", found=f"{file}: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _report_duplicates(node, "", problems)
        data = yaml.load(text, Loader=_loader())  # noqa: S506 - it is a SafeLoader
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
        problems.append(f"(top level): must be keys and values, got {shown(data)}")
        return {}
    return data


def _loader() -> Any:
    """Return YAML's safe loader without numbers to the base of 60, which make 1320 of ``22:00``."""
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        """Knows ``22:00`` as a text."""

    sixty = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
    as_text = [("tag:yaml.org,2002:str", sixty)]
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {
        first: (as_text + known if first in "-+0123456789" else known) for first, known in resolvers.items()
    }
    return Loader


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


def validate(
    kind: type[_Kind],
    data: dict[str, Any],
    problems: list[str],
    source: Callable[[str], str] = lambda _path: "",
) -> _Kind | None:
    """Check data against a schema.

    Args:
        kind: The dataclass at the top of the schema.
        data: Keys and values, as YAML gives them.
        problems: A sentence for each wrong or unknown value is added to it.
        source: Says for a path where its value comes from, when that is not the file.

    Returns:
        The value; None when there are problems.
    """
    import json

    from pydantic import TypeAdapter, ValidationError

    # Strict JSON mode: lists become tuples and texts paths, but "3" is no
    # integer and true is no number.
    read_bounds()
    before = len(problems)
    text = json.dumps(_json_ready(data, "", problems))
    if len(problems) > before:
        text = "{}"
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        fields = {item.path: item for item in schema(kind)}
        details = error.errors(include_url=False, include_context=False)
        problems.extend(_sentence(detail, fields, source) for detail in details)
        return None


def refusal(problems: list[str], source: str, hint: str = "", hint_ja: str = "") -> ConfigurationError:
    """Make the error that lists what was found.

    Args:
        problems: Sentences.
        source: The file, or whatever else was read.
        hint: What to do; that of the class when empty.
        hint_ja: The same in Japanese.

    Returns:
        The error; it exists to be raised.
    """
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigurationError(
        f"the configuration in {source} has {count}",
        found="\n".join(problems),
        hint=hint,
        hint_ja=hint_ja,
        problems=problems,
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that names the nearest known name, or nothing.

    Args:
        name: What was given.
        known: What there is.

    Returns:
        Such as ``; did you mean days?``.
    """
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """Return a value as it is shown in a sentence.

    Args:
        value: Whatever was given.

    Returns:
        Its beginning, if it is long.
    """
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


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


def _sentence(detail: ErrorDetails, fields: Mapping[str, SchemaField], source: Callable[[str], str]) -> str:
    location = [
        str(part) for part in detail["loc"] if not str(part).startswith(("function-", "constrained-"))
    ]
    path = ".".join(location)
    if detail["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        *groups, name = location
        prefix = "".join(group + "." for group in _without_names(groups, fields))
        known = [known[len(prefix) :] for known in fields if known.startswith(prefix)]
        return f"{path}: unknown key{suggestion(name, [key for key in known if '.' not in key])}"
    if detail["type"] == "missing":
        return f"{path}: is missing"
    # The innermost setting that is known: an item of a list is not, its list is.
    known_path = _without_names(location, fields)
    while known_path and ".".join(known_path) not in fields:
        known_path.pop()
    expected = fields[".".join(known_path)].expected if known_path else "keys and values"
    if expected in {"a group", "a table"} or (expected == "a list of groups" and location[-1].isdigit()):
        expected = "keys and values"
    expected = expected.removesuffix(" or null")
    return f"{path}: must be {expected}, got {shown(detail['input'])}{source(path)}"


def _without_names(location: list[str], fields: Mapping[str, SchemaField]) -> list[str]:
    """Put NAME where the user's own names stand, and N for the number of an item, as `schema` does."""
    generic: list[str] = []
    for part in location:
        above = ".".join(generic)
        expected = fields[above].expected if above in fields else ""
        if expected == "a table":
            generic.append(NAME)
        elif expected == "a list of groups":
            generic.append(NUMBER)
        else:
            generic.append(part)
    return generic
