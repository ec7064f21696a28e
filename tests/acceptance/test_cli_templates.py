"""`keikaku restore --spare`, `keikaku templates` and what doctor says of them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration import schemas
from tests.integration.test_restore_in_place import SMALL

if TYPE_CHECKING:
    from pathlib import Path

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
    told = next(line for line in command("doctor")[1].splitlines() if "Templates: 1 with 1 spare" in line)
    assert "of the server's disk beside the databases; a restore takes up to" in told
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


def test_the_configuration_decides_what_a_restore_leaves(
    command: Command, database: DatabaseURL, tmp_path: Path
) -> None:
    """Options of the library are keys of the file too; the command line wins."""
    schemas.run(database, SMALL)
    command("templates", "clear")
    command("create", "small")
    file = tmp_path / "own.yml"
    file.write_text("templates: false\nkeep_old_minutes: 5\n", encoding="utf-8")
    words = command("restore", "small", "--config", str(file))[2]
    assert "(swap: nobody else is connected)" in words
    assert "the replaced database is kept as keikaku_old_" in words
    assert "(swap: cold: " in command("restore", "small", "--config", str(file), "--templates")[2]
    file.write_text("spare: 1\n", encoding="utf-8")
    assert "(template: warm: " in command("restore", "small", "--config", str(file))[2]
    assert "(template: spare: " in command("restore", "small", "--spare", "0")[2]
    assert "(swap: nobody" in command("restore", "small", "--config", str(file), "--no-templates")[2]


def test_doctor_names_the_template_of_a_deleted_snapshot_and_drops_it(
    command: Command, database: DatabaseURL
) -> None:
    """PEERS 9: it only takes disk; `templates clear NAME` is the other way."""
    schemas.run(database, SMALL)
    command("templates", "clear")
    command("create", "small")
    command("restore", "small")
    (template,) = json.loads(command("templates", "list", "--json")[1])
    assert "Templates: 1 with 0 spare" in command("doctor")[1]
    assert command("delete", "small", "--all")[0] == 0
    code, found, _ = command("doctor")
    assert (code, f"Templates: of deleted snapshots: {template['database']}" in found) == (0, True)
    assert f"Templates: dropped {template['database']}" in command("doctor", "--fix")[1]
    assert "Templates: none" in command("doctor")[1]
    assert command("templates", "clear", "--version", "1")[0] == 2
    assert command("templates", "clear", "small")[2] == "nothing to drop\n"


def test_doctor_names_a_database_that_a_crash_of_the_server_left_without_a_mark(
    command: Command, database: DatabaseURL, server: Server
) -> None:
    """It may be somebody else's, so people drop it; `--fix` does not."""
    name = f"keikaku_spare_{database.database}"
    with server.admin() as admin:
        admin.execute(f"CREATE DATABASE {name}")
        told = f"called like ours, without our mark: {name}"
        assert told in command("doctor", "--fix")[1]
        assert told in command("doctor")[1]
        admin.execute(f"COMMENT ON DATABASE {name} IS 'of the accountants'")
        assert told not in command("doctor")[1]
        admin.execute(f"DROP DATABASE {name}")
