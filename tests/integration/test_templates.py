"""Warm restore: the first restore leaves a template, later ones clone it and rename."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots import SnapshotManager
from tests.integration import schemas
from tests.integration.test_restore_in_place import CHANGED, SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.servers import Server

COUNT = "SELECT count(*) FROM children"


@pytest.fixture
def small(database: DatabaseURL, tmp_path: Path) -> Iterator[SnapshotManager]:
    """A manager whose database was snapshotted as ``small`` and changed afterwards."""
    schemas.run(database, SMALL)
    with SnapshotManager(database, tmp_path / "snapshots", minimum_free_mb=1) as manager:
        manager.create_snapshot("small")
        schemas.run(database, CHANGED)
        yield manager


def test_the_second_restore_takes_the_template_of_the_first(server: Server, small: SnapshotManager) -> None:
    """C3: nothing is loaded, and the database is the same."""
    first = small.restore_snapshot("small")
    assert (first.strategy, first.reason.partition(":")[0]) == ("swap", "cold")
    content = schemas.dump_text(server, small.url)
    schemas.run(small.url, CHANGED)
    second = small.restore_snapshot("small")
    assert (second.strategy, second.reason.partition(":")[0]) == ("template", "warm")
    assert schemas.dump_text(server, small.url) == content
