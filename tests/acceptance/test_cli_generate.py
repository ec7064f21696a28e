"""`keikaku generate` where it refuses: guards, names and datasets, before the database is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.run import run
from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.conftest import MakeDatabase
    from tests.servers import Server


@pytest.fixture
def generate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run the command in this process; exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(url: DatabaseURL, *arguments: str) -> tuple[int, str]:
        code = run(keikaku, ["generate", "--scale", "small", "--db-url", url.text, *arguments], "keikaku")
        return code, capsys.readouterr().err

    return call


def _tables(url: DatabaseURL) -> object:
    with connect(url) as connection:
        return connection.execute("SELECT count(*) FROM pg_class WHERE relname = 'staffs'").fetchone()


def test_16_a_protected_database_needs_its_option(
    generate: Callable[..., tuple[int, str]], server: Server, make_database: MakeDatabase
) -> None:
    """B15: refused by name; --allow-protected reaches both the data and the snapshot."""
    live = make_database(server, name="kk_live_generate")

    code, said = generate(live)
    assert code == 16
    assert "--allow-protected" in said
    assert _tables(live) == (0,)

    assert generate(live, "--allow-protected")[0] == 0
    assert _tables(live) == (1,)


def test_16_the_configured_list_holds_for_generate_too(
    generate: Callable[..., tuple[int, str]], database: DatabaseURL, tmp_path: Path
) -> None:
    """B15: allowed_databases of the configuration; --allow-protected is no way around it."""
    configuration = tmp_path / "keikaku.yml"
    configuration.write_text('allowed_databases: ["*_test"]\n', encoding="utf-8")

    code, said = generate(database, "--config", str(configuration), "--allow-protected")

    assert code == 16
    assert "*_test" in said
    assert _tables(database) == (0,)


def test_16_the_configured_words_hold_for_generate_too(
    generate: Callable[..., tuple[int, str]], database: DatabaseURL, tmp_path: Path
) -> None:
    """B15: protected_words of the configuration."""
    configuration = tmp_path / "keikaku.yml"
    configuration.write_text(f"protected_words: [{database.database}]\n", encoding="utf-8")

    assert generate(database, "--config", str(configuration))[0] == 16
    assert _tables(database) == (0,)


@pytest.mark.parametrize("name", ["../x", "a b", "latest", "名前"])
def test_2_a_name_that_no_snapshot_can_have_is_found_first(
    generate: Callable[..., tuple[int, str]], database: DatabaseURL, name: str
) -> None:
    """The test data of yesterday is not replaced for a snapshot that cannot be made."""
    code, said = generate(database, "--name", name)

    assert code == 2
    assert said.count("To fix this: ") == 1
    assert _tables(database) == (0,)


def test_2_a_dataset_with_a_fault_has_no_traceback(
    generate: Callable[..., tuple[int, str]], database: DatabaseURL, tmp_path: Path
) -> None:
    """B16: whatever the user's module raises is one line with its kind."""
    (tmp_path / "faulty.py").write_text("1 / 0\n", encoding="utf-8")

    code, said = generate(database, "--dataset", "faulty:dataset")

    assert code == 2
    assert "ZeroDivisionError: division by zero" in said
    assert "Traceback" not in said


def test_the_remedy_is_japanese_on_request(
    generate: Callable[..., tuple[int, str]], database: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G: KEIKAKU_LANG=ja gives the remedy in Japanese."""
    monkeypatch.setenv("KEIKAKU_LANG", "ja")

    code, said = generate(database, "--name", "a b")

    assert code == 2
    assert "英数字" in said
