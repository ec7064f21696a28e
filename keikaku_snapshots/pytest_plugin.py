"""The pytest plugin: a private database from a snapshot, back at the start after every test.

::

    import psycopg

    def test_an_office_closes(keikaku_db):
        with psycopg.connect(keikaku_db) as connection:
            connection.execute("DELETE FROM offices WHERE …")  # committed, and undone after the test

Every test suite on the machine imports this module, so it imports nothing but pytest and the options.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from keikaku_snapshots.testing.options import OPTIONS, PluginOptions, add_options, read_options

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from keikaku_snapshots.snapshots.manager import SnapshotManager
    from keikaku_snapshots.testing.isolation import Request, TestSession
    from keikaku_snapshots.testing.urls import URLText

__all__ = [
    "OPTIONS",
    "keikaku_database",
    "keikaku_db",
    "keikaku_prepare",
    "keikaku_server",
    "load_snapshot",
    "snapshot_manager",
]

#: Where a conftest may put the environment in which ``PERF_TEST_SCALE`` is looked up.
PERFORMANCE_ENVIRONMENT = pytest.StashKey[dict[str, str]]()
_FAILED = pytest.StashKey[bool]()
_KEPT = "keikaku_kept"
_MARKERS = (
    "keikaku(snapshot=, scale=, isolation='rewind'|'clone'|'none'): what `keikaku_db` gives this test",
    'performance(scale="small"): measures performance; a larger scale than PERF_TEST_SCALE is skipped',
)


class KeikakuWarning(UserWarning):
    """Something was repaired, such as a snapshot that was damaged."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini values."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip performance tests of larger scales than ``PERF_TEST_SCALE``."""
    marked = [item for item in items if item.get_closest_marker("performance") is not None]
    if marked:
        from keikaku_snapshots.perf.pytest_marks import skip_larger_scales

        skip_larger_scales(marked, config.stash.get(PERFORMANCE_ENVIRONMENT, None))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember that a test failed, for ``--keikaku-keep-failed``."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        item.stash[_FAILED] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the databases of failed tests are."""
    kept = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name == _KEPT
    ]
    if kept:
        terminalreporter.section("keikaku: databases of failed tests, kept for a week")
        for line in kept:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def keikaku_server(pytestconfig: pytest.Config) -> URLText:
    """URL of a database on the server where databases for tests are made; nothing in it is changed.

    The one that ``--keikaku-db-url``, the environment or ``keikaku_db_url`` names, else a database of the
    embedded server.
    """
    from keikaku_snapshots.testing.server import find_server
    from keikaku_snapshots.testing.urls import URLText

    with _readable():
        return URLText.of(find_server(read_options(pytestconfig)))


@pytest.fixture(scope="session")
def keikaku_prepare() -> Callable[[str], object] | None:
    """Override it with a function that makes the tables in an empty database, before rows are generated.

    It is called with the URL of the database; None: the dataset makes its own tables.
    """
    return None


@pytest.fixture(scope="session")
def _keikaku_session(
    pytestconfig: pytest.Config,
    keikaku_server: str,
    keikaku_prepare: Callable[[str], object] | None,
) -> Iterator[TestSession]:
    from keikaku_snapshots.testing.server import open_session

    def warn(text: str) -> None:
        _warn(pytestconfig, text)

    with _readable():
        session = open_session(
            read_options(pytestconfig),
            keikaku_server,
            _worker(pytestconfig),
            prepare=keikaku_prepare,
            warn=warn,
        )
    yield session
    with _readable():
        session.close()


@pytest.fixture(scope="session")
def keikaku_database(pytestconfig: pytest.Config, _keikaku_session: TestSession) -> URLText:
    """URL of this process's own database, restored from the snapshot; what is changed in it stays changed.

    Until a test uses `keikaku_db`, which is the same database: after that test it is back at the start.
    """
    from keikaku_snapshots.testing.urls import URLText

    with _readable():
        choice = _asked(read_options(pytestconfig), None).choice
        return URLText.of(_keikaku_session.database(choice).url)


@pytest.fixture
def keikaku_db(request: pytest.FixtureRequest, _keikaku_session: TestSession) -> Iterator[URLText]:
    """URL of a database that is as the snapshot has it, at the beginning of each test."""
    from keikaku_snapshots.testing.isolation import go_back
    from keikaku_snapshots.testing.urls import URLText

    options = read_options(request.config)
    session = _keikaku_session
    with _readable():
        asked = _asked(options, request.node.get_closest_marker("keikaku"))
        if asked.isolation == "clone":
            database, url = None, session.clone(asked.choice)
        else:
            database = session.database(asked.choice)
            database.begin(rewinding=asked.isolation == "rewind")
            url = database.url
    yield URLText.of(url)
    with _readable():
        kept = None
        if options.keep_failed and request.node.stash.get(_FAILED, False):
            kept = session.keep(url, request.node.nodeid)
            request.node.user_properties.append((_KEPT, f"{request.node.nodeid}: {kept}"))
        if database is None:
            if kept is None:
                session.drop(url)
        elif asked.isolation == "rewind":
            go_back(session, database)


@pytest.fixture(scope="session")
def snapshot_manager(pytestconfig: pytest.Config, _keikaku_session: TestSession) -> SnapshotManager:
    """A `SnapshotManager` of `keikaku_database` and of the directory of the snapshots."""
    with _readable():
        return _keikaku_session.database(_asked(read_options(pytestconfig), None).choice).manager


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """An error of ours fails the test with its own words, without the lines of our code."""
    __tracebackhide__ = True
    from keikaku_snapshots.errors import KeikakuError

    try:
        yield
    except KeikakuError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _asked(options: PluginOptions, mark: pytest.Mark | None) -> Request:
    from keikaku_snapshots.errors import UsageError
    from keikaku_snapshots.testing.filling import Choice
    from keikaku_snapshots.testing.isolation import Request

    given = dict(mark.kwargs) if mark is not None else {}
    if mark is not None and (mark.args or set(given) - {"snapshot", "scale", "isolation"}):
        raise UsageError(
            "the mark keikaku takes snapshot=, scale= and isolation=", found=f"{mark.args} {mark.kwargs}"
        )
    snapshot, scale = given.get("snapshot"), given.get("scale")
    if snapshot is None and scale is None:
        snapshot, scale = options.snapshot, options.scale
    return Request(Choice(snapshot, scale), given.get("isolation") or options.isolation)


def _worker(config: pytest.Config) -> str:
    # Not from the environment, which a run inside a worker inherits.
    return str(getattr(config, "workerinput", {}).get("workerid", "main"))


def _warn(config: pytest.Config, text: str) -> None:
    """Put a warning into the summary; never an error, because what it tells of was repaired."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(text, KeikakuWarning, stacklevel=2)
    config.hook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": caught[0], "when": "runtest", "nodeid": "", "location": None}
    )


def load_snapshot(
    name: str, *, snapshot_dir: str | os.PathLike[str] = "snapshots", version: str | None = None
) -> Callable[..., None]:
    """Make a function that restores a snapshot, for ``load=`` of pytest-postgresql.

    ::

        postgresql_proc = factories.postgresql_proc(load=[load_snapshot("small_10_offices")])

    Args:
        name: Name of the snapshot.
        snapshot_dir: Directory of the snapshots.
        version: Its version; the newest valid one if None.

    Returns:
        A function of ``host``, ``port``, ``user``, ``dbname`` and ``password``.
    """

    def load(
        *, host: str, port: int | str, user: str, dbname: str, password: str | None = None, **_: Any
    ) -> None:
        from keikaku_snapshots.postgres.url import DatabaseURL
        from keikaku_snapshots.snapshots.manager import SnapshotManager

        url = DatabaseURL(host, int(port), user, password or None, dbname)
        with _readable(), SnapshotManager(url, snapshot_dir, templates=False) as manager:
            # In place: pytest-postgresql's own marks on its template database stay.
            manager.restore_snapshot(name, version, strategy="in_place")

    return load
