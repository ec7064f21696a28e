"""The edges of rewind, each by both kinds of role: everything is as it was, whatever was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from keikaku_snapshots.snapshots.rewind import Rewinder
from tests import servers
from tests.integration.rewind_cases import CASES
from tests.integration.test_rewind import run, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server


@pytest.fixture(scope="module")
def databases(server: Server) -> Iterator[dict[str, DatabaseURL]]:
    """One database of the superuser, one of a plain owner."""
    made = {role: servers.create_database(server, role) for role in ("postgres", "keikaku_owner")}
    yield made
    for url in made.values():
        servers.drop_database(server, url.database)


def _there_and_back(url: DatabaseURL, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a case twice over, the second time without the quick way of an owner; say which ways ran."""
    case = CASES[name]
    run(url, case.before)
    before = state(url)
    paths = []
    with SnapshotManager(url) as manager:
        manager.checkpoint()
        for quick in (True, False):
            monkeypatch.setattr(Rewinder, "quick", quick)
            for change in case.changes:
                run(url, change)
            assert state(url) != before, "the case changes nothing"
            paths.append(manager.rewind().path)
            assert state(url) == before
        assert manager.rewind().rows == 0
        assert manager.drop_checkpoint()
    return paths


def _empty(server: Server, url: DatabaseURL) -> None:
    """Drop every schema as superuser; give ``public`` to the owner as a new database has it."""
    servers.empty_database(server.url.with_database(url.database))


@pytest.mark.parametrize("name", CASES)
def test_a_superuser_gets_everything_back(
    databases: dict[str, DatabaseURL], server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4, path replica: foreign keys and triggers rest in this session, the others notice nothing."""
    url = databases["postgres"]
    try:
        assert _there_and_back(url, name, monkeypatch) == ["replica", "replica"]
    finally:
        _empty(server, url)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.as_owner])
def test_a_plain_owner_gets_everything_back(
    databases: dict[str, DatabaseURL], server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4, paths owner and suspended: without any right but owning the tables."""
    url = databases["keikaku_owner"]
    try:
        paths = _there_and_back(url, name, monkeypatch)
        assert paths[0] in {"owner", "suspended"}
        assert paths[1] == "suspended"
    finally:
        _empty(server, url)
