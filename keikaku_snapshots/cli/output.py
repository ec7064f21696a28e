"""What the command line prints: data on stdout, words on stderr, never a secret.

Every text passes through `Output`; it decides between words and one JSON
document, between colour and none, between a progress bar and lines.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import click

if TYPE_CHECKING:
    from keikaku_snapshots.progress import ProgressCallback
    from keikaku_snapshots.snapshots.manifest import Snapshot

#: Anything between the scheme and the last @ of a URL: what no parser has
#: understood yet may still hold a password.
_CREDENTIALS = re.compile(r"(\w+://)[^\s'\"]*@")

#: Shorter secrets stand in ordinary words; replacing them would garble every message.
_SHORTEST_SECRET = 4
#: From this length on a secret is replaced inside of words too.
_LONG_SECRET = 8


class Declined(click.Abort):
    """The person said no; nothing was changed."""


class Output:
    """The one writer of a command."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0, log_format: str = "text"
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.log_format = log_format
        #: What an error is said to be of, when it must be one line, as in a mail from cron.
        self.one_line = ""
        self._secrets: set[str] = set()
        self._redactors: list[Callable[[str], str]] = []
        self._documented = False
        for variable in ("KEIKAKU_DB_URL", "PERFORMANCE_TEST_DATABASE_URL", "TEST_DATABASE_URL"):
            self.hide(os.environ.get(variable, ""))

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Output:
        """Look ahead at what was typed, so that even a wrong option is reported in the form asked for."""
        typed = list(itertools.takewhile(lambda part: part != "--", arguments))
        flags = "".join(part[1:] for part in typed if re.fullmatch(r"-[qv]+", part))
        log_format = (
            "json" if "--log-format=json" in typed or _follows(typed, "--log-format", "json") else "text"
        )
        output = cls(
            as_json="--json" in typed,
            quiet="q" in flags or "--quiet" in typed,
            verbose=flags.count("v") + typed.count("--verbose"),
            log_format=log_format,
        )
        for part in typed:
            output.hide(part.removeprefix("--db-url=") if part.startswith("--db-url=") else part)
        return output

    # Secrets

    def hide(self, url: str) -> None:
        """Learn the password of a URL, before anything has parsed it or when nothing can."""
        if "://" in url:
            rest = url.partition("://")[2]
            # An unescaped @ may be in the password or in a parameter.
            for authority in {rest, rest.partition("?")[0], rest.partition("/")[0]}:
                credentials, at, place = authority.rpartition("@")
                user, colon, password = credentials.partition(":")
                if at and colon:
                    self._hide_forms(password, shown={user, *re.split(r"[:/?]", place)})
            for match in re.finditer(r"[?&](?:password|sslpassword)=([^&\s]*)", url):
                self._hide_forms(match[1], shown=set())
        for match in re.finditer(r"\bpassword\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", url):
            self._hide_forms(match[1].strip("'"), shown=set())

    def hide_by(self, redact: Callable[[str], str]) -> None:
        """Add the redaction of a parsed URL, which knows every spelling of its password."""
        self._redactors.append(redact)

    def _hide_forms(self, password: str, shown: set[str]) -> None:
        plain_text = unquote(password)
        for form in {password, plain_text, quote(plain_text, safe=""), quote(plain_text)}:
            # What equals user or database is shown anyway, and where the
            # password itself stands `_CREDENTIALS` hides it.
            if len(form) < _SHORTEST_SECRET or form in shown:
                continue
            pattern = re.escape(form)
            self._secrets.add(pattern if len(form) >= _LONG_SECRET else rf"(?<!\w){pattern}(?!\w)")

    def redact(self, text: str, *, by_form: bool = True) -> str:
        """Replace every secret that is known.

        Args:
            text: Any text.
            by_form: Also replace whatever looks like the credentials of a URL,
                as text of other programs may hold it; not the samples in a remedy.
        """
        for redact in self._redactors:
            text = redact(text)
        for pattern in sorted(self._secrets, key=len, reverse=True):
            text = re.sub(pattern, "***", text)
        return _CREDENTIALS.sub(r"\1***@", text) if by_form else text

    # Data, on stdout

    def document(self, value: Any) -> None:
        """Print the one JSON document of this command; a second one is left out."""
        if not self._documented:
            self._documented = True
            self._print(json.dumps(plain(value), ensure_ascii=False, indent=2))

    def data(self, text: str) -> None:
        """Print a line that was asked for, such as a row of a list; not with --json."""
        if not self.as_json:
            self._print(text)

    @staticmethod
    def _print(text: str) -> None:
        try:
            click.echo(text)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            from keikaku_snapshots.errors import DiskFullError

            raise DiskFullError(
                "the output cannot be written",
                found=str(error.strerror),
                hint="Free space where the output goes; the command's own work was done.",
            ) from error

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()
    ) -> None:
        """Print aligned columns; wide characters count double.

        Args:
            headers: Names of the columns.
            rows: The cells, as text.
            right: Columns that are aligned to the right, by index.
        """
        widths = [max(map(_cells, column)) for column in zip(headers, *rows, strict=True)]
        for number, row in enumerate([headers, *rows]):
            cells = []
            for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
                space = " " * (width - _cells(cell))
                cells.append(space + cell if index in right else cell + space)
            line = "  ".join(cells).rstrip()
            self.data(click.style(line, bold=True) if number == 0 else line)

    # Words, on stderr

    def say(self, text: str) -> None:
        """Say what happened; not with -q."""
        if not self.quiet:
            self._words("info", text)

    def detail(self, text: str) -> None:
        """Say what only -v asks for, even with -q."""
        self._words("debug", text)

    def warn(self, text: str) -> None:
        """Say what the user should know, even with -q."""
        self._words("warning", text)

    def error(self, headline: str, *, found: str = "", hint: str = "", hint_ja: str = "") -> dict[str, str]:
        """Say what went wrong: what happened, what was found, what to do.

        Returns:
            The parts as they were said, without secrets.
        """
        parts = {"message": self.redact(headline), "found": self.redact(found)}
        parts["hint"] = self.redact(hint, by_form=False)
        if hint_ja:
            parts["hint_ja"] = self.redact(hint_ja, by_form=False)
        if self.log_format == "json":
            self._json_line("error", parts)
            return parts
        if self.one_line:
            pieces = [parts["message"], *parts["found"].splitlines(), hint, hint_ja]
            text = "; ".join(piece.strip().rstrip(".;") for piece in pieces if piece.strip())
            click.echo(f"error: {self.one_line}: {text}", err=True)
            return parts
        lines = [click.style("error: ", fg="red", bold=True) + parts["message"]]
        lines += [f"  {line}" for line in parts["found"].splitlines()]
        if hint:
            lines.append(click.style("To fix this: ", bold=True) + parts["hint"])
        if hint_ja:
            lines.append(click.style("対処: ", bold=True) + parts["hint_ja"])
        # Said by the presenter too, when the context that holds the choice is gone.
        click.echo("\n".join(lines), err=True, color=self.colour_choice)
        return parts

    def raw(self, text: str) -> None:
        """Print text that has its own form, such as a traceback, to stderr."""
        click.echo(self.redact(text), err=True)

    def confirm(self, question: str) -> None:
        """Ask on the terminal; the question goes to stderr.

        Raises:
            Declined: The answer was not yes.
            click.Abort: Ctrl-C or the end of the input was the answer.
        """
        try:
            confirmed = click.confirm(self.redact(question), default=False, err=True)
        except click.Abort:
            click.echo(err=True)  # the message begins on a line of its own
            raise
        if not confirmed:
            raise Declined

    def _words(self, level: str, text: str) -> None:
        if self.log_format == "json":
            self._json_line(level, {"message": self.redact(text)})
        elif level == "warning":
            click.echo(click.style("warning: ", fg="yellow", bold=True) + self.redact(text), err=True)
        else:
            click.echo(self.redact(text), err=True)

    @staticmethod
    def _json_line(level: str, parts: Mapping[str, str]) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level}
        line |= {name: text for name, text in parts.items() if text}
        click.echo(json.dumps(line, ensure_ascii=False), err=True)

    # How it looks

    @property
    def colour_choice(self) -> bool | None:
        """False when NO_COLOR or a dumb terminal wants none, else None: by whether it is a terminal."""
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or self.log_format == "json"
        return False if plain else None

    @property
    def on_terminal(self) -> bool:
        """Whether a person sits in front: words go to a terminal and answers come from one."""
        return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()

    @property
    def draws(self) -> bool:
        """Whether bars that move can be drawn: words go to a terminal that knows how."""
        return sys.stderr.isatty() and self.log_format == "text" and os.environ.get("TERM") != "dumb"

    def start_logging(self) -> None:
        """Send the library's log records to stderr: warnings, with -v the rest too."""
        root = logging.getLogger("keikaku_snapshots")
        for handler in list(root.handlers):
            if isinstance(handler, _Handler):
                root.removeHandler(handler)
        root.addHandler(_Handler(self))
        root.propagate = False
        quiet_level = logging.ERROR if self.quiet else logging.WARNING
        levels = [quiet_level, logging.INFO, logging.DEBUG]
        root.setLevel(levels[min(self.verbose, len(levels) - 1)])
        # That something was not recorded is never silent.
        logging.getLogger("keikaku_snapshots.audit").setLevel(min(root.level, logging.WARNING))

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """Show progress while the block runs: a bar on a terminal, else lines, nothing with -q."""
        if self.quiet:
            yield None
            return
        from keikaku_snapshots.cli import progress

        with progress.bars() if self.draws else progress.lines(self.say) as callback:
            yield callback


class _Handler(logging.Handler):
    """Writes the library's records through the one writer."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self._output.warn(text)
        else:
            area = record.name.removeprefix("keikaku_snapshots.")
            self._output.detail(f"{area}: {text}")


def _follows(typed: Sequence[str], option: str, value: str) -> bool:
    return any(first == option and second == value for first, second in itertools.pairwise(typed))


def _cells(text: str) -> int:
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


#: What JSON has itself.
_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any) -> Any:
    """Turn values of the library into what JSON knows.

    Args:
        value: A frozen dataclass, mapping, sequence, path, time or plain value.

    Returns:
        Dictionaries, lists, texts, numbers, booleans and None.
    """
    if type(value) in _PLAIN:
        return value
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset | Iterator):
        return [plain(item) for item in value]
    return value


def size_of(snapshot: Snapshot) -> str:
    """Write the size of a snapshot for people.

    Args:
        snapshot: The snapshot.

    Returns:
        Such as ``12.3 MB``, or ``12.3 MB, 1.2 MB its own`` when it shares parts with others.
    """
    own = f", {size(snapshot.own_bytes)} its own" if snapshot.shared_bytes else ""
    return size(snapshot.size_bytes) + own


def counted(count: int, thing: str) -> str:
    """Write a number of things for people.

    Args:
        count: How many.
        thing: The word for one of them.

    Returns:
        Such as ``1 row`` or ``4,211 rows``.
    """
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def size(size_bytes: int) -> str:
    """Write a size for people.

    Args:
        size_bytes: The size in bytes.

    Returns:
        Such as ``12.3 MB``; powers of ten, as disks are sold.
    """
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration(seconds: float) -> str:
    """Write a time span for people.

    Args:
        seconds: The span in seconds.

    Returns:
        Such as ``0.42 s`` or ``3 min 5 s``.
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
