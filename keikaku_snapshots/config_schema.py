"""The settings: what the configuration holds, as frozen values that describe themselves.

The fields, their types, limits and the ``#:`` line above each of them are
what `keikaku_snapshots.config` reads and checks and what is printed in
``docs/reference/configuration.md``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

if typing.TYPE_CHECKING:
    from collections.abc import Iterator

    from annotated_types import Ge, Gt  # a dependency of pydantic, part of its interface

#: Stands in a path for a name that the user gives, and for the number of an item of a list.
NAME = "NAME"
NUMBER = "N"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """How often work is tried again after a connection was lost before COMMIT was sent."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Tries in all; 1 never repeats.
    attempts: Annotated[int, Gt(0)] = 3
    #: Shortest wait between two tries, in seconds.
    wait_min_s: Annotated[float, Ge(0)] = 2.0
    #: Longest wait between two tries, in seconds; the wait doubles each time.
    wait_max_s: Annotated[float, Ge(0)] = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutSettings:
    """How long each kind of waiting may take while data is generated; null waits for ever."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Opening a connection, in seconds.
    connect_s: Annotated[float, Gt(0)] = 10.0
    #: One statement on the server, in seconds.
    statement_s: Annotated[float, Gt(0)] | None = 600.0
    #: Waiting for a lock that another session holds, in seconds.
    lock_s: Annotated[float, Gt(0)] | None = 10.0
    #: A COPY that takes no more rows, in seconds.
    stall_s: Annotated[float, Gt(0)] | None = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings:
    """How test data is generated."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Rows handed to PostgreSQL at a time.
    batch_size: Annotated[int, Gt(0)] = 500
    #: Resident memory at which the work is stopped with nothing written, in megabytes; null is no limit.
    memory_limit_mb: Annotated[int, Gt(0)] | None = None
    #: Snapshots kept of each name after `generate` made a new one; null keeps all.
    keep: Annotated[int, Gt(0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """What `keikaku prune` and `refresh` keep of each snapshot name; what no rule keeps is deleted."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: The newest so many versions; null is no rule.
    keep_last: Annotated[int, Gt(0)] | None = None
    #: The newest version of each of the newest so many days (UTC) with a snapshot; null is no rule.
    keep_daily: Annotated[int, Gt(0)] | None = None
    #: The newest version of each of the newest so many weeks with a snapshot; null is no rule.
    keep_weekly: Annotated[int, Gt(0)] | None = None
    #: The newest version of each of the newest so many months with a snapshot; null is no rule.
    keep_monthly: Annotated[int, Gt(0)] | None = None
    #: Everything that is not older, in days; null is no rule.
    older_than_days: Annotated[float, Ge(0)] | None = 30.0
    #: So many of the newest versions stay whatever the other rules say.
    min_keep: Annotated[int, Gt(0)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """A scale of one's own: how much of a dataset, and how long that may take."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Offices to generate (for the Keikaku dataset); the same as `units`.
    offices: Annotated[int, Gt(0)] | None = None
    #: Units to generate of any other dataset, in the unit that the dataset defines.
    units: Annotated[int, Gt(0)] | None = None
    #: Rows of a kind for each unit, such as `staffs` and `recipients`; what is left out is the dataset's own.
    per_unit: dict[str, Annotated[int, Gt(0)]] = field(default_factory=dict)
    #: Seconds that generating may take before the performance report calls it a failure; null is no limit.
    limit_s: Annotated[float, Gt(0)] | None = None

    @property
    def count(self) -> int:
        """How many units are generated, under whichever name they were given."""
        return self.offices or self.units or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings with their defaults."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - pydantic reads this name as it is

    #: Directory of the snapshots; relative to the working directory, so write it absolute for cron.
    snapshot_dir: Path = Path("snapshots")
    #: Free space that must be left on the disk of the snapshots, in megabytes; less refuses to create.
    minimum_free_mb: Annotated[int, Ge(0)] = 1000
    #: How long to wait for another process that works on the same snapshot or database, in seconds.
    lock_wait_s: Annotated[float, Ge(0)] = 0.0
    #: How long a restore in place waits for each table that another session holds, in seconds.
    lock_timeout_s: Annotated[float, Gt(0)] = 3.0
    #: Directory of pg_dump, pg_restore and psql; null searches the usual places.
    pg_bin: Path | None = None
    #: Whole words in a database's or host's name that refuse everything that replaces data.
    protected_words: tuple[str, ...] = ("prod", "production", "live")
    #: Patterns of the only databases that may be replaced, such as `*_test`; empty allows every one that
    #: is not protected.
    allowed_databases: tuple[str, ...] = ()
    #: What a restore does when the schema is not the snapshot's.
    on_schema_mismatch: Literal["warn", "error", "ignore"] = "warn"
    #: Commands that every restore runs on the new database before it takes the old one's place, such as
    #: `alembic upgrade head`; each is split as a shell would, and run without a shell. A restore with
    #: hooks is always a swap.
    after_restore: tuple[str, ...] = ()
    #: How long each of these commands may take, in seconds; null is no limit.
    hook_timeout_s: Annotated[float, Gt(0)] | None = 3600.0
    #: Leave a copy of what was restored on the server, from which later restores are made.
    templates: bool = True
    #: Further copies that the server makes ready after a restore, so that the next one only renames.
    spare: Annotated[int, Ge(0)] = 0
    #: How long a database that a swap replaced is kept, in minutes.
    keep_old_minutes: Annotated[float, Ge(0)] = 0.0
    #: What happens when a line of the audit log cannot be written.
    audit: Literal["warn", "error"] = "warn"
    #: What `NAME_latest` is: a symbolic link to the newest version, a hard link, or a copy.
    latest: Literal["symlink", "hardlink", "copy"] = "symlink"
    #: How `create`, `generate` and `refresh` compress snapshots of the formats plain and json; null does not.
    compression: Literal["gzip", "zstd"] | None = None
    #: Level of it: gzip 1 to 9, zstd 1 to 19; null is a fast one.
    compression_level: Annotated[int, Gt(0)] | None = None
    #: Tries after a lost connection.
    retry: RetrySettings = field(default_factory=RetrySettings)
    #: How long waiting may take while data is generated.
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    #: How test data is generated.
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    #: What of each snapshot name is kept by `prune` and `refresh`.
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    #: Scales of one's own, by name; a known name replaces the built-in scale.
    scales: dict[str, ScaleSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SchemaField:
    """One setting as the reference page shows it."""

    #: Where it stands in the file, such as ``retry.attempts``.
    path: str
    #: What it takes, in words.
    expected: str
    #: The default as it would be written in YAML; empty for a group.
    default: str
    #: What it means.
    meaning: str
    #: The variable that sets it; empty for groups and tables.
    variable: str


def read_bounds() -> None:
    """Import the bounds that the annotations name; before anybody reads those.

    Most commands check no value, and the import takes as long as one of them works.
    """
    import annotated_types

    globals().update({name: getattr(annotated_types, name) for name in ("Ge", "Gt")})


def schema(kind: type = Settings, prefix: str = "", *, explained: bool = True) -> Iterator[SchemaField]:
    """Walk the settings in the order of the file, groups before their members.

    Args:
        kind: The group to walk.
        prefix: Its path with a final dot; empty at the top.
        explained: Say what each means, too; reading that takes as long as many a command.

    Yields:
        One value for each setting and each group.
    """
    read_bounds()
    meanings = _field_comments(kind) if explained else defaultdict(str)
    hints = typing.get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint, path = hints[item.name], prefix + item.name
        expected, members, below = _group_of(hint)
        if expected:
            default = "" if dataclasses.is_dataclass(hint) else _as_yaml(_default_of(item))
            yield SchemaField(path, expected, default, meanings[item.name], "")
            if members is not None:
                yield from schema(members, f"{path}.{below}", explained=explained)
        else:
            is_settable = kind.__module__ == __name__ and f".{NAME}." not in path
            variable = variable_of(path) if is_settable else ""
            default = _as_yaml(_default_of(item))
            yield SchemaField(path, _expected(hint), default, meanings[item.name], variable)


def _group_of(hint: Any) -> tuple[str, type | None, str]:
    """What a type that holds further keys takes, in words, and what they are; empty for a single value."""
    if dataclasses.is_dataclass(hint):
        return "a group", typing.cast("type", hint), ""
    if typing.get_origin(hint) is dict:
        values = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(values):
            return "a table", typing.cast("type", values), f"{NAME}."
        return f"names, each with {_expected(values)}", None, ""
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(items := typing.get_args(hint)[0]):
        return "a list of groups", typing.cast("type", items), f"{NUMBER}."
    return "", None, ""


def _default_of(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def variable_of(path: str) -> str:
    """Return the environment variable that sets a path, such as ``KEIKAKU_RETRY_ATTEMPTS``."""
    return "KEIKAKU_" + path.replace(".", "_").upper()


def _expected(hint: Any) -> str:
    """Say in words what a type and its limits take."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = next(part for part in typing.get_args(hint) if part is not type(None))
        return f"{_expected(inner)} or null"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        words = ", ".join(typing.get_args(item)) if typing.get_origin(item) is Literal else "texts"
        return f"a list of {words}"
    if typing.get_origin(hint) is Annotated:
        from annotated_types import Gt, Le

        base, *limits = typing.get_args(hint)
        word = "integer" if base is int else "number"
        most = "".join(f" up to {limit.le}" for limit in limits if isinstance(limit, Le))
        if any(isinstance(limit, Gt) for limit in limits):
            return f"a positive {word}{most}"
        return (f"an {word}" if base is int else f"a {word}") + f" of 0 or more{most}"
    return {Path: "a path", str: "a text", bool: "true or false", object: "any value"}[hint]


def _as_yaml(default: Any) -> str:
    if default is dataclasses.MISSING:
        return ""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(map(_as_yaml, default)) + "]"
    if isinstance(default, dict):
        return "{" + ", ".join(default) + "}"
    if dataclasses.is_dataclass(default):
        pairs = {item.name: getattr(default, item.name) for item in dataclasses.fields(default)}
        shown = [f"{name}: {_as_yaml(value)}" for name, value in pairs.items() if value is not None]
        return "{" + ", ".join(shown) + "}"
    return f"{default:g}" if isinstance(default, float) else str(default)


@cache
def _field_comments(kind: type) -> dict[str, str]:
    """Read the ``#:`` lines above the fields, which are the documentation of record."""
    import inspect

    meanings: dict[str, str] = {}
    pending: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        text = line.strip()
        if text.startswith("#:"):
            pending.append(text[2:].strip())
        elif pending and ":" in text:
            meanings[text.split(":", 1)[0]] = " ".join(pending)
            pending = []
    return meanings
