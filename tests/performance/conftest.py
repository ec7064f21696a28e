"""Performance tests: `pytest -m performance`, larger scales with PERF_TEST_SCALE=medium or large."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.errors import NoDatabaseError
from keikaku_snapshots.perf import get_performance_test_db_url
from keikaku_snapshots.postgres.url import DatabaseURL
from keikaku_snapshots.pytest_plugin import PERFORMANCE_ENVIRONMENT
from keikaku_snapshots.snapshots.lock import FileLock
from tests.conftest import PERFORMANCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Tell the plugin what PERF_TEST_SCALE said before the environment was scrubbed."""
    config.stash[PERFORMANCE_ENVIRONMENT] = config.stash[PERFORMANCE]


@pytest.fixture
def reports(pytestconfig: pytest.Config) -> Iterator[Path]:
    """Where the reports of the tests are kept; one test at a time, because each measures."""
    folder = pytestconfig.invocation_params.dir / "perf-reports"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".tests.lock", subject="performance tests", wait_s=3600):
        yield folder


@pytest.fixture
def performance_database(request: pytest.FixtureRequest, reports: Path) -> DatabaseURL:
    """The database that the environment names for performance tests, else one of the test server."""
    try:
        return DatabaseURL.parse(get_performance_test_db_url(request.config.stash[PERFORMANCE]))
    except NoDatabaseError:
        found: DatabaseURL = request.getfixturevalue("database")
        return found
