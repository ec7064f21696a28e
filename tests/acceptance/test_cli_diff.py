"""`keikaku diff` as a user meets it: exit codes, words, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run

if TYPE_CHECKING:
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: DatabaseURL
) -> Run:
    """Run the command line in this process; a snapshot "x" of a table of three rows is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("KEIKAKU_DB_URL", database.text)
    monkeypatch.setenv("KEIKAKU_MINIMUM_FREE_MB", "1")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    _execute(
        database,
        "CREATE TABLE staffs (id integer PRIMARY KEY, name text);"
        "INSERT INTO staffs VALUES (1, '山田'), (2, '佐藤'), (3, '鈴木')",
    )
    assert call("create", "x")[0] == 0
    return call


def _execute(url: DatabaseURL, text: str) -> None:
    with psycopg.connect(**url.connect_arguments()) as connection:
        connection.execute(text)


def _change(url: DatabaseURL) -> None:
    _execute(
        url,
        "UPDATE staffs SET name = E'田中\\n\\x1b[31m' WHERE id = 1; DELETE FROM staffs WHERE id = 2;"
        "INSERT INTO staffs VALUES (10, NULL); CREATE TABLE notes (t text)",
    )


def test_no_difference_is_0_and_nothing_on_stdout(type_: Run) -> None:
    """As of diff(1); the database is the second side when it is left out."""
    for sides in (["x"], ["x", "live"], ["live", "x"], ["x", "x"]):
        code, out, err = type_("diff", *sides)
        assert (code, out) == (0, "")
        assert "no difference" in err
    assert type_("diff", "x", "-q")[2] == ""


def test_a_difference_is_1_and_told_without_values(type_: Run, database: DatabaseURL) -> None:
    """Counts, tables and columns; values may be personal data."""
    _change(database)

    code, out, err = type_("diff", "x")

    assert code == 1
    assert "they differ" in err
    assert "new table public.notes" in out
    assert [line.split() for line in out.splitlines() if line.startswith("public.")] == [
        ["public.notes", "-", "0", "0", "0", "0", "table", "added"],
        ["public.staffs", "3", "3", "1", "1", "1", "name:", "1"],
    ]
    assert not any(name in out for name in ("山田", "佐藤", "田中"))


def test_rows_are_shown_when_asked_for_and_cannot_speak_to_the_terminal(
    type_: Run, database: DatabaseURL
) -> None:
    """`+`, `-` and `~` with old and new values; NULL and escapes are visible."""
    _change(database)

    code, out, _ = type_("diff", "x", "live", "--rows", "5")

    assert code == 1
    assert out.splitlines()[-3:] == [
        '  ~ id=1: name 山田 → "田中\\n\\u001b[31m"',
        "  - id=2, name=佐藤",
        "  + id=10, name=NULL",
    ]
    assert "\x1b" not in out
    assert type_("diff", "x", "--rows", "1")[1].splitlines()[-1] == "  and 2 more"


def test_json_is_exact(type_: Run, database: DatabaseURL) -> None:
    """One document with tables and rows; the exit code is the same."""
    _change(database)

    code, out, _ = type_("diff", "x", "--rows", "5", "--json")

    document = json.loads(out)
    assert code == 1
    assert document["same"] is False
    assert (document["before"]["name"], document["after"]["kind"]) == ("x", "live")
    staffs = next(table for table in document["tables"] if table["name"] == "public.staffs")
    assert [(row["change"], row["key"]["id"], row["old"], row["new"]) for row in staffs["rows"]] == [
        ("changed", "1", {"name": "山田"}, {"name": "田中\n\x1b[31m"}),
        ("removed", "2", {"id": "2", "name": "佐藤"}, None),
        ("added", "10", None, {"id": "10", "name": None}),
    ]
    assert json.loads(type_("diff", "x", "x", "--json")[1])["same"] is True


def test_errors_have_their_own_codes(type_: Run, tmp_path: Path) -> None:
    """1 means "they differ" and nothing else: missing is 10, damaged 13, wrong use 2."""
    assert type_("diff", "missing")[0] == 10
    assert type_("diff", "x", "missing")[0] == 10
    assert type_("diff", "live", "live")[0] == 2
    assert type_("diff", "x", "--rows", "-1")[0] == 2
    data = next((tmp_path / "snapshots").glob("x_2*.sql"))
    data.write_bytes(data.read_bytes().replace("山田".encode(), "田中".encode()))
    code, _, err = type_("diff", "x")
    assert code == 13
    assert "スナップショットが破損" in err


def test_two_files_need_no_database(type_: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing files works where no server is reachable."""
    monkeypatch.setenv("KEIKAKU_DB_URL", "postgresql://nobody@127.0.0.1:1/nothing")

    assert type_("diff", "x", "x")[0] == 0
    assert type_("diff", "x")[0] == 12
