"""The pytest plugin, seen by the test suites that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

pytest_plugins = ["pytester"]

#: A test that commits and expects the start state.
COMMITS = """
import psycopg
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_commits(keikaku_db, number):
    with psycopg.connect(keikaku_db) as connection:
        assert connection.execute("SELECT count(*) FROM offices").fetchone() == (10,)
        assert connection.execute("SELECT count(*) FROM offices WHERE name = 'changed'").fetchone() == (0,)
        connection.execute("UPDATE offices SET name = 'changed'")
"""


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots that the tests of this module share; the first one generates."""
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture
def suite(
    pytester: pytest.Pytester, creator_database: DatabaseURL, snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A directory with a test suite, for a role that may create databases."""
    monkeypatch.setenv("KEIKAKU_DB_URL", creator_database.text)
    monkeypatch.setenv("KEIKAKU_SNAPSHOT_DIR", str(snapshots))
    pytester.makeini(
        "[pytest]\naddopts = -p no:cacheprovider\nasyncio_default_fixture_loop_scope = function\n"
    )
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the suite in a process of its own."""
    return suite.runpytest_subprocess(*arguments, timeout=120)


def databases_for_tests(server: Server) -> list[str]:
    """Names of the databases that the plugin made and that are still there."""
    with server.admin() as connection:
        rows = connection.execute(
            "SELECT datname::text FROM pg_database WHERE datname LIKE 'keikaku\\_test\\_%'"
        )
        return [str(name) for (name,) in rows]


def test_each_test_finds_the_start_state_although_the_others_commit(
    suite: pytest.Pytester, server: Server
) -> None:
    """`keikaku_db` is rewound after each test, and the run leaves no database behind."""
    suite.makepyfile(COMMITS.format(count=5))

    result = run(suite)

    result.assert_outcomes(passed=5)
    assert databases_for_tests(server) == []
