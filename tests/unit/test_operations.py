"""Amounts as people write them, and the one line of an unattended failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keikaku_snapshots.cli import keikaku
from keikaku_snapshots.cli.output import Output
from keikaku_snapshots.cli.run import run
from keikaku_snapshots.errors import UsageError
from keikaku_snapshots.operations.amounts import parse_duration, parse_size, span

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("45 min", 2700), ("26h", 93600), ("1.5d", 129600), ("1W", 604800)],
)
def test_time_spans(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1000", 1000), ("500kB", 500_000), ("1MB", 10**6), ("2.5 gb", 2_500_000_000), ("1KiB", 1024)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    """Powers of ten, or of two where it is said; bytes without a unit."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "26", "h", "-1h", "1e3s", "nan d", "26hours", "１h"])
def test_an_unclear_span_is_refused(text: str) -> None:
    """26 of what? A guess would let monitoring sleep."""
    with pytest.raises(UsageError, match="is not a time span"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "1M", "MB", "-1MB", "1 apple"])
def test_an_unclear_size_is_refused(text: str) -> None:
    """1M could be one of two."""
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (600, "10.0 min"), (90000, "25.0 h"), (864000, "10.0 d"), (-30, "-30 s")],
)
def test_spans_read_well(seconds: float, text: str) -> None:
    """The largest unit that fits."""
    assert span(seconds) == text


def test_an_error_is_one_line_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """What happened, what was found, what to do, joined; the same without a secret."""
    output = Output()
    output.hide("postgresql://u:S3cretCanary@h/d")
    output.one_line = "refresh nightly"
    output.error("it broke", found="here\nS3cretCanary there", hint="Mend it.", hint_ja="直す。")

    assert capsys.readouterr().err == "error: refresh nightly: it broke; here; *** there; Mend it; 直す。\n"


def test_refresh_never_takes_the_embedded_server_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FAULTS 42: not on a terminal either, where other commands do: its line ends in a crontab."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(Output, "on_terminal", True)

    assert run(keikaku, ["refresh", "nightly", "--dump-only"], "keikaku") == 2
    assert "no database is named" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_refresh_does_not_guess_what_a_name_means(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt name must not generate rows into the database: the scale, or --dump-only, is said."""
    assert run(keikaku, ["refresh", "nightyl"], "keikaku") == 2
    assert "--dump-only or --scale" in capsys.readouterr().err
