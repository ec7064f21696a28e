"""The plugin's options: typed, in the ini file, by default. Imported at every start of pytest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

#: How a test is kept from the others.
ISOLATIONS: Final = ("rewind", "clone", "none")


@dataclass(frozen=True, slots=True)
class Option:
    """One option; ``--keikaku-NAME`` and the ini value ``keikaku_NAME``."""

    #: Name with underscores.
    name: str
    #: What it is for.
    help: str
    #: What stands for the value in the help; empty for a switch.
    metavar: str = ""
    #: Values that are allowed; empty for any.
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """As it is typed on the command line."""
        return "--keikaku-" + self.name.replace("_", "-")

    @property
    def key(self) -> str:
        """As it is written in the ini file."""
        return f"keikaku_{self.name}"


OPTIONS: Final = (
    Option(
        "db_url",
        "server on which databases for tests are made, as the URL of any database there; if none is named"
        " (nor by KEIKAKU_DB_URL, PERFORMANCE_TEST_DATABASE_URL, TEST_DATABASE_URL), the embedded one",
        "URL",
    ),
    Option("config", "configuration file (default: keikaku.yml, config/keikaku.yml)", "FILE"),
    Option("snapshot_dir", "directory of the snapshots (default: snapshots)", "DIR"),
    Option("snapshot", "name of the snapshot (default: that of dataset and scale)", "NAME"),
    Option("dataset", "what is generated when there is no snapshot (default: keikaku)", "NAME"),
    Option("scale", "how much of it (default: small)", "NAME"),
    Option("isolation", "how a test is kept from the others (default: rewind)", "WAY", ISOLATIONS),
    Option("keep_failed", "keep a copy of the database of each failed test for a week, and print its URL"),
    Option(
        "named_database",
        "work in the database that the URL names, whose contents are replaced, instead of making new ones;"
        " not with several xdist workers",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginOptions:
    """What was asked for; None where nothing was."""

    #: URL of the server.
    db_url: str | None = None
    #: Configuration file.
    config: str | None = None
    #: Directory of the snapshots.
    snapshot_dir: str | None = None
    #: Name of the snapshot.
    snapshot: str | None = None
    #: Name of the dataset.
    dataset: str = "keikaku"
    #: Name of the scale; None: small, or what the snapshot says.
    scale: str | None = None
    #: How a test is kept from the others.
    isolation: str = "rewind"
    #: Keep the databases of failed tests.
    keep_failed: bool = False
    #: Work in the named database itself.
    named_database: bool = False
    #: Names of the options that were typed on the command line; the environment comes before the others.
    typed: frozenset[str] = frozenset()
    #: Where relative paths of the ini file and the embedded server begin.
    root: Path


def add_options(parser: pytest.Parser) -> None:
    """Declare all options; for the hook ``pytest_addoption``.

    Args:
        parser: pytest's.
    """
    group = parser.getgroup("keikaku", "databases from snapshots (keikaku_snapshots)")
    for option in OPTIONS:
        if not option.metavar:
            group.addoption(option.flag, dest=option.key, action="store_true", default=None, help=option.help)
            parser.addini(option.key, option.help, type="bool", default=False)
            continue
        extra: dict[str, Any] = {"choices": option.choices} if option.choices else {}
        group.addoption(
            option.flag, dest=option.key, default=None, metavar=option.metavar, help=option.help, **extra
        )
        parser.addini(option.key, option.help, type="string", default="")


def read_options(config: pytest.Config) -> PluginOptions:
    """Read what was given: the command line before the ini file.

    Args:
        config: Of the run.

    Returns:
        The options.

    Raises:
        pytest.UsageError: An ini value is none of those that are allowed.
    """
    import pytest

    given: dict[str, Any] = {}
    typed = {option.name for option in OPTIONS if config.getoption(option.key, None) is not None}
    for option in OPTIONS:
        value = config.getoption(option.key) if option.name in typed else config.getini(option.key)
        if option.name in typed and value == "":
            raise pytest.UsageError(f"{option.flag} was given without a value")
        if value and option.choices and value not in option.choices:
            allowed = ", ".join(option.choices)
            raise pytest.UsageError(f"{option.key} must be one of {allowed}, not {value!r}")
        if value:
            given[option.name] = value
    return PluginOptions(**given, typed=frozenset(typed), root=config.rootpath)
