"""What somebody meets who types the command line for the first time, or types it wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from keikaku_snapshots.cli import COMMANDS, keikaku
from keikaku_snapshots.cli.output import Output
from keikaku_snapshots.cli.run import run

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def type_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, in an empty directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(keikaku, list(arguments), "keikaku")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def _shell(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", line], env=environment, cwd=directory, capture_output=True, text=True, check=False
    )


class TestHelp:
    """The first screen."""

    def test_the_two_sample_lines_stand_on_lines_of_their_own(self, type_: Run) -> None:
        """Click's mark against wrapping works and is not printed."""
        code, out, _ = type_("--help")

        assert code == 0
        assert "\\b" not in out
        assert "\b" not in out
        assert "\n    keikaku restore medium_100_offices    the database as it was then\n" in out

    @pytest.mark.parametrize("command", [(), ("server",)])
    def test_a_bare_command_shows_its_help_and_calls_nothing_an_error(
        self, command: tuple[str, ...], type_: Run
    ) -> None:
        """Whoever types only the name wants to know what there is; the code is still that of a wrong call."""
        code, out, err = type_(*command)

        assert code == 2
        assert out == ""
        assert err.startswith(" ".join(("Usage: keikaku", *command)))
        assert "error" not in err.splitlines()[0]
        assert "To fix this" not in err

    def test_the_words_of_the_server_commands_are_whole(self, type_: Run) -> None:
        """No line of the list ends in the middle of a sentence."""
        _, out, _ = type_("server", "--help")

        commands = out.partition("Commands:\n")[2].strip().splitlines()
        assert [line.strip() for line in commands if not line.endswith(".")] == []

    @pytest.mark.parametrize("command", ["restore", "list", "refresh"])
    def test_options_are_listed_without_the_arguments(self, command: str, type_: Run) -> None:
        """The usage line names the arguments; a row without words says nothing."""
        out = type_(command, "--help")[1]

        assert "NAME" in out.splitlines()[0]
        assert [line for line in out.splitlines() if line.strip() in {"NAME", "[NAME]"}] == []


class TestWrongCalls:
    """Each says what to type instead."""

    @pytest.mark.parametrize("option", ["--json", "-q", "--db-url", "--snapshot-dir"])
    def test_an_option_before_the_command_is_told_its_place(self, option: str, type_: Run) -> None:
        """The common options follow the command; nothing else is suggested in their place."""
        code, _, err = type_(option, "list")

        assert code == 2
        assert f"error: {option} follows the command" in err
        assert f"keikaku COMMAND {option}" in err

    def test_a_misspelt_command_of_a_group_is_corrected(self, type_: Run) -> None:
        """`keikaku server` suggests as `keikaku` does."""
        assert "did you mean start?" in type_("server", "strat")[2]

    @pytest.mark.parametrize("directory", ["", ".", "./"])
    def test_a_snapshot_directory_needs_a_name(self, directory: str, type_: Run) -> None:
        """An unset variable must not put snapshots among the sources (as in the configuration)."""
        code, _, err = type_("list", "--snapshot-dir", directory)

        assert code == 2
        assert "--snapshot-dir" in err

    def test_deleting_what_is_not_there_says_where_it_looked(self, type_: Run, tmp_path: Path) -> None:
        """Most often the directory is the wrong one."""
        code, _, err = type_("delete", "nope", "--all", "--snapshot-dir", "elsewhere")

        assert code == 10
        assert f"in {tmp_path / 'elsewhere'}" in err


class TestStreams:
    """Standard streams that are closed or full, as daemons and full disks have them."""

    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_closed_streams_are_no_failure(self, closed: str, tmp_path: Path) -> None:
        """What cannot be said is left out; the exit code remains."""
        good = _shell(f'"$PYTHON" -m keikaku_snapshots list {closed}', tmp_path)
        bad = _shell(f'"$PYTHON" -m keikaku_snapshots show nope {closed}', tmp_path)

        assert (good.returncode, bad.returncode) == (0, 10)
        assert "Traceback" not in good.stderr + bad.stderr

    def test_a_reader_of_everything_that_left_does_not_change_the_code(self, tmp_path: Path) -> None:
        """`keikaku … 2>&1 | head`: the failure keeps its own code, whatever can be said of it."""
        line = '"$PYTHON" -m keikaku_snapshots show nope --json 2>&1 | true; echo "${PIPESTATUS[0]}"'

        assert _shell(line, tmp_path).stdout == "10\n"

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_behind_stdout_is_called_so(self, tmp_path: Path) -> None:
        """It is no bug to report."""
        result = _shell('"$PYTHON" -m keikaku_snapshots list --json >/dev/full', tmp_path)

        assert result.returncode == 14
        assert "the output cannot be written (ディスク容量不足)" in result.stderr
        assert "report" not in result.stderr


class TestColour:
    """Colour on a terminal, unless somebody says no."""

    @staticmethod
    def _on_a_terminal(directory: Path, **variables: str) -> str:
        """Return what a failing command prints on a terminal."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(directory)
            environment = {"PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
            argv = [sys.executable, "-m", "keikaku_snapshots", "show", "nope"]
            os.execve(sys.executable, argv, environment)  # noqa: S606 - no shell is wanted
        text = b""
        with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
            while piece := os.read(terminal, 65536):
                text += piece
        os.close(terminal)
        os.waitpid(pid, 0)
        return text.decode()

    def test_an_error_is_coloured(self, tmp_path: Path) -> None:
        """The eye finds it."""
        assert "\x1b[31m" in self._on_a_terminal(tmp_path)

    @pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_no_means_no_for_errors_too(self, variables: dict[str, str], tmp_path: Path) -> None:
        """They are printed when the command is over."""
        text = self._on_a_terminal(tmp_path, **variables)

        assert "there is no snapshot" in text
        assert "\x1b" not in text


class TestInterruption:
    """Ctrl-C."""

    def test_it_says_what_is_left(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Whoever interrupts wants to know in which state things are."""
        from keikaku_snapshots.cli.run import present

        assert present(KeyboardInterrupt(), Output()) == 130
        assert "no database and no snapshot is half changed" in capsys.readouterr().err

    def test_at_a_question_it_means_no(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The message begins on a line of its own and says that nothing was changed."""
        from keikaku_snapshots.cli.run import present

        def interrupted(_prompt: str) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
        with pytest.raises(click.Abort) as caught:
            Output().confirm("Restore?")

        assert present(caught.value, Output()) == 130
        assert capsys.readouterr().err.endswith("\nerror: not confirmed, nothing was changed\n")


class TestCompletion:
    """The script that bash loads, loaded by bash."""

    @pytest.fixture
    def offered(self, tmp_path: Path) -> Callable[..., list[str]]:
        """Return what TAB offers after these words."""
        (tmp_path / "snapshots").mkdir()
        for stem in ("daily_20261120_031500", "daily_20261121_031500", "other_20260101_000000"):
            (tmp_path / "snapshots" / f"{stem}.sql").touch()
            (tmp_path / "snapshots" / f"{stem}.sql.manifest.json").touch()
        (tmp_path / "keikaku").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m keikaku_snapshots "$@"\n')
        (tmp_path / "keikaku").chmod(0o755)
        (tmp_path / "own.yml").touch()

        def offer(*words: str) -> list[str]:
            quoted = " ".join(f"'{word}'" for word in words)
            result = _shell(
                'PATH="$PWD:$PATH"; eval "$(keikaku completion bash)"; '
                f"COMP_WORDS=(keikaku {quoted}) COMP_CWORD={len(words)}; "
                f"_keikaku_completion keikaku; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                tmp_path,
            )
            return result.stdout.split()

        return offer

    def test_commands_options_and_names(self, offered: Callable[..., list[str]]) -> None:
        """What `keikaku completion --help` promises."""
        assert {"restore", "rename"} <= set(offered("re")) <= set(COMMANDS)
        assert "--dry-run" in offered("restore", "--")
        assert offered("restore", "") == ["daily", "other"]
        assert offered("server", "sta") == ["start", "status"]

    def test_values_that_are_known(self, offered: Callable[..., list[str]]) -> None:
        """Versions of the name typed before, and scales."""
        assert offered("restore", "daily", "--version", "") == ["20261121_031500", "20261120_031500"]
        assert offered("generate", "--scale", "") == ["small", "medium", "large", "xlarge"]

    def test_a_directory_given_before_is_where_names_come_from(
        self, offered: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        """`--snapshot-dir` counts for completion too."""
        (tmp_path / "snapshots").rename(tmp_path / "kept")

        assert offered("restore", "--snapshot-dir", "kept", "d") == ["daily"]

    def test_files_are_left_to_the_shell(self) -> None:
        """Click answers with the kind; bash then completes files and directories itself."""
        for option, kind in (("--config", "file"), ("--snapshot-dir", "dir")):
            result = subprocess.run(
                [sys.executable, "-m", "keikaku_snapshots"],
                env={
                    "PYTHONPATH": str(ROOT),
                    "_KEIKAKU_COMPLETE": "bash_complete",
                    "COMP_WORDS": f"keikaku list {option} o",
                    "COMP_CWORD": "3",
                },
                capture_output=True,
                text=True,
                check=True,
            )
            assert result.stdout.strip() == f"{kind},o"


def test_a_narrow_terminal_keeps_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 60 columns the bar gives way; step, amount and time stay."""
    from rich.progress import BarColumn

    from keikaku_snapshots.cli.progress import bar_columns

    assert any(isinstance(column, BarColumn) for column in bar_columns(100))
    assert not any(isinstance(column, BarColumn) for column in bar_columns(60))


def test_json_of_a_wrong_option_place_is_one_document(type_: Run) -> None:
    """A script that puts --json first still gets JSON."""
    code, out, _ = type_("--json", "list")

    assert json.loads(out)["error"]["exit_code"] == code == 2
