"""Fixtures for all tests: servers, databases, and an environment without surprises."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import hypothesis
import pytest

from tests import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL

_BASE = pytest.StashKey[Path]()
#: What `KEIKAKU_CAMPAIGN_…` said before the environment was scrubbed (tests/campaigns).
CAMPAIGN = pytest.StashKey[dict[str, str]]()
_CAMPAIGN_PREFIX = "KEIKAKU_CAMPAIGN_"
#: Scale and database of the performance tests, as they were before the environment was scrubbed.
PERFORMANCE = pytest.StashKey[dict[str, str]]()
_PERFORMANCE_NAMES = ("PERF_TEST_SCALE", "PERFORMANCE_TEST_DATABASE_URL", "TEST_DATABASE_URL")
_SCRUBBED = re.compile(
    r"PG[A-Z]+|PSQL\w*|KEIKAKU_\w+|\w*DATABASE_URL|PERF_TEST_SCALE|NO_COLOR|FORCE_COLOR|COLUMNS"
    r"|PYTHONDONTWRITEBYTECODE"
)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("keikaku", deadline=None)
hypothesis.settings.load_profile("keikaku")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a person choose the server of the tests that need only one."""
    parser.addoption(
        "--server-major",
        type=int,
        choices=servers.MAJORS,
        default=max(servers.MAJORS),
        help="PostgreSQL of the tests that do not take each version in turn; the newest by default",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Scrub the environment and take the servers' directory from the process that began the run."""
    workers = getattr(config, "workerinput", {})
    config.stash[CAMPAIGN] = workers.get("campaign") or {
        name.removeprefix(_CAMPAIGN_PREFIX): value
        for name, value in os.environ.items()
        if name.startswith(_CAMPAIGN_PREFIX)
    }
    config.stash[PERFORMANCE] = workers.get("performance") or {
        name: os.environ[name] for name in _PERFORMANCE_NAMES if name in os.environ
    }
    for name in [name for name in os.environ if _SCRUBBED.fullmatch(name)]:
        del os.environ[name]
    # Else each worker compiles all tests again, and hundreds of child processes the package.
    sys.dont_write_bytecode = False
    # Without it the first patch that a test runs would make a key file in the developer's own configuration.
    os.environ["KEIKAKU_AUDIT_KEY"] = "5e" * 32
    if not hasattr(config, "workerinput"):
        _take_signals()
    given = workers.get("servers")
    if given:
        config.stash[_BASE] = Path(given)


def pytest_collection_finish() -> None:
    """Take the tests themselves, half a million objects, out of each later collection of garbage."""
    gc.collect()
    gc.freeze()


def _take_signals() -> None:
    """Undo what nohup and a shell's `command &` ignore: the programs that tests signal would inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_configure_node(node: object) -> None:
    """Tell an xdist worker where the servers are and what campaigns and performance tests were told."""
    config = node.config  # type: ignore[attr-defined]
    node.workerinput["campaign"] = config.stash[CAMPAIGN]  # type: ignore[attr-defined]
    node.workerinput["performance"] = config.stash[PERFORMANCE]  # type: ignore[attr-defined]
    node.workerinput["servers"] = str(_base(config))  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers when the run is over, also after failures and Ctrl-C."""
    if not hasattr(config, "workerinput") and _BASE in config.stash:
        servers.remove(config.stash[_BASE])


def pytest_report_header() -> str:
    """Say which PostgreSQL versions the tests are run against."""
    found = servers.programs()
    parts = []
    for major in servers.MAJORS:
        if major in found:
            said = subprocess.run(
                [found[major] / "postgres", "--version"], capture_output=True, text=True, check=True
            )
            parts.append(f"{said.stdout.split()[2]} ({'system' if major == 15 else 'wheel'})")
        else:
            parts.append(f"{major} MISSING")
    return "PostgreSQL servers: " + ", ".join(parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the campaigns report, with the seeds that repeat them, also when all went well."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "teardown":
                for name, value in report.user_properties:
                    if name == "campaign":
                        terminalreporter.write_line(str(value))


def _base(config: pytest.Config) -> Path:
    if _BASE not in config.stash:
        # What measures time measures it on a disk, as its users do.
        on_disk = config.getoption("markexpr") == "performance"
        config.stash[_BASE] = servers.make_base_directory(on_disk=on_disk)
    return config.stash[_BASE]


def _server(config: pytest.Config, major: int) -> servers.Server:
    if major not in servers.programs():
        reason = f"PostgreSQL {major} is not installed: pip install 'keikaku_snapshots[embedded]'"
        # In CI a missing server is a failure; only 15 depends on the machine.
        if os.environ.get("CI", "").lower() in {"1", "true"} and major != 15:
            pytest.fail(reason)
        pytest.skip(reason)
    return servers.start(_base(config), major)


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> servers.Server:
    """The newest server, or that of ``--server-major``."""
    return _server(pytestconfig, pytestconfig.getoption("server_major"))


@pytest.fixture(scope="session", params=servers.MAJORS, ids=lambda major: f"pg{major}")
def each_server(request: pytest.FixtureRequest) -> servers.Server:
    """Each version in turn, for what depends on the version."""
    return _server(request.config, request.param)


@pytest.fixture(scope="session")
def own_server(pytestconfig: pytest.Config) -> Iterator[servers.Server]:
    """A server for this worker alone: all who use a server share its templates and push them out."""
    major = pytestconfig.getoption("server_major")
    if major not in servers.programs():
        _server(pytestconfig, major)  # fails or skips with the reason
    directory = servers.make_base_directory()
    yield servers.start(directory, major)
    servers.remove(directory)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command line, called in this process, sets up the package's logger for good."""
    logger = logging.getLogger("keikaku_snapshots")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]


class FreshServer(Protocol):
    """Makes a server of its own for one test."""

    def __call__(self, major: int = 18, **settings: str) -> servers.Server:
        """Start it with these configuration parameters."""


@pytest.fixture
def fresh_server(pytestconfig: pytest.Config) -> Iterator[FreshServer]:
    """Servers that the test may stop, kill and reconfigure."""
    with ExitStack() as stack:

        def make(major: int = 18, **settings: str) -> servers.Server:
            if major not in servers.programs():
                return _server(pytestconfig, major)  # fails or skips with the reason
            directory = servers.make_base_directory()
            stack.callback(servers.remove, directory)
            return servers.start(directory, major, settings)

        yield make


class MakeDatabase(Protocol):
    """Makes an empty database that is dropped after the test."""

    def __call__(
        self, server: servers.Server, owner: str = "postgres", name: str | None = None
    ) -> DatabaseURL:
        """Give its address as its owner."""


@pytest.fixture
def make_database() -> Iterator[MakeDatabase]:
    """Databases for one test; what the code under test makes beside them goes with them."""
    with ExitStack() as stack:

        def make(server: servers.Server, owner: str = "postgres", name: str | None = None) -> DatabaseURL:
            url = servers.create_database(server, owner, name)
            stack.callback(servers.drop_database, server, url.database)
            return url

        yield make


@pytest.fixture
def database(server: servers.Server, make_database: MakeDatabase) -> DatabaseURL:
    """A new empty database, as superuser."""
    return make_database(server)


@pytest.fixture(scope="module")
def module_database(server: servers.Server) -> Iterator[DatabaseURL]:
    """One database for a module; see `shared_database`."""
    url = servers.create_database(server)
    yield url
    servers.drop_database(server, url.database)


@pytest.fixture
def shared_database(module_database: DatabaseURL) -> Iterator[DatabaseURL]:
    """An empty database that the tests of a module use one after the other.

    Emptying takes a hundredth of a second, creating and dropping one a tenth, and much more on a
    busy disk. Not for tests that change the database itself (its name, owner or settings).
    """
    yield module_database
    servers.empty_database(module_database)


@pytest.fixture
def owner_database(server: servers.Server, make_database: MakeDatabase) -> DatabaseURL:
    """A new empty database of a plain role that may not create databases."""
    return make_database(server, owner="keikaku_owner")


@pytest.fixture
def creator_database(server: servers.Server, make_database: MakeDatabase) -> DatabaseURL:
    """A new empty database of a plain role that may create databases."""
    return make_database(server, owner="keikaku_creator")
