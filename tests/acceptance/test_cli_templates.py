"""`keikaku restore --spare`, `keikaku templates` and what doctor says of them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration import schemas
from tests.integration.test_restore_in_place import SMALL

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.acceptance.conftest import Command
    from tests.servers import Server


@pytest.fixture(scope="session")
def server(own_server: Server) -> Server:
    """A server whose templates nobody else pushes out."""
    return own_server


def test_a_snapshot_is_restored_cold_warm_and_from_a_spare(command: Command, database: DatabaseURL) -> None:
    """C3: the result says which way it was; the list, doctor and clear say what it costs."""
    schemas.run(database, SMALL)
    assert command("templates", "clear")[0] == 0
    assert command("templates", "list")[1:] == ("", "no templates; `keikaku restore NAME` leaves one\n")
    assert command("create", "small")[0] == 0
    code, _, words = command("restore", "small")
    assert (code, "(swap: cold: a template was made" in words) == (0, True)
    code, document, words = command("restore", "small", "--spare", "1", "--json")
    told = json.loads(document)
    assert (told["strategy"], told["reason"].partition(":")[0]) == ("template", "warm")
    assert "(template: warm:" in words
    deadline = time.monotonic() + 20
    while not (found := json.loads(command("templates", "list", "--json")[1]))[0]["spares"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (len(found), len(found[0]["spares"]), found[0]["target"]) == (1, 1, database.database)
    table = command("templates", "list")[1]
    assert found[0]["database"] in table
    assert "SPARES" in table
    assert "Templates: 1 with 1 spare" in command("doctor")[1]
    assert "(template: spare:" in command("restore", "small", "--strategy", "template")[2]
    dropped = json.loads(command("templates", "clear", "--json")[1])["dropped"]
    assert dropped == [found[0]["database"]]
    assert "Templates: none" in command("doctor")[1]


def test_templates_can_be_switched_off(command: Command, database: DatabaseURL) -> None:
    """For those who count their disk."""
    schemas.run(database, SMALL)
    command("templates", "clear")
    command("create", "small")
    assert "(swap: nobody else is connected)" in command("restore", "small", "--no-templates")[2]
    assert json.loads(command("templates", "list", "--json")[1]) == []
    assert command("restore", "small", "--no-templates", "--strategy", "template")[0] == 2
