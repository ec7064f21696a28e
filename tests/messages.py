"""The texts that people get, recorded, so that the documents show what the program really says.

Acceptance tests bring about a real fault and hand over what came of it; it must be the text of
`messages.json`, from which `docs/reference/errors.md` is made. After a text was changed on purpose::

    RECORD_MESSAGES=1 pytest tests/acceptance && python docs/generate_reference.py
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keikaku_snapshots.cli.output import Output
from keikaku_snapshots.cli.run import present

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keikaku_snapshots.errors import KeikakuError
    from keikaku_snapshots.postgres.url import DatabaseURL

FILE = Path(__file__).parent / "acceptance" / "messages.json"
#: Set to write what differs instead of failing.
RECORD = "RECORD_MESSAGES"

#: What is another one in each run: pattern, what stands for it in the documents.
_VARYING = (
    (r"\.\d+\.[0-9a-f]{12}((?:\.deleted)?\.tmp)\b", r".4711.5d2f\1"),
    (r"has \d+ bytes, the manifest says \d+", "has 4096 bytes, the manifest says 5208"),
    (
        r"needed [\d,.]+ MB \(estimated [\d,.]+ MB and [\d,.]+ MB(.*?)\), free [\d,.]+ MB",
        r"needed 1,412 MB (estimated 412 MB and 1,000 MB\1), free 803 MB",
    ),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "6b0e8d0c-…"),
    (r'(?:127\.0\.0\.1|localhost)(:|", port |, port )\d+', r"db.example\g<1>5432"),
    (r"127\.0\.0\.1", "db.example"),
    (r"\b(process|PID|pid) \d+(?: on \S+)?", r"\1 4711"),
)
#: The same where several that differ must stay different.
_NUMBERED: tuple[tuple[str, Callable[[int], str]], ...] = (
    (r"(?<!\d)20\d{6}_\d{6}(?:_\d+)?(?!\d)", lambda number: f"202604{number:02}_030000"),
    (r"\b[0-9a-f]{64}\b", lambda number: f"{0x3F1C * number:04x}…"),
)


@dataclass(frozen=True, slots=True)
class Message:
    """One text as it is shown with ``KEIKAKU_LANG=ja``."""

    #: Name of the class of the error.
    error: str
    #: The exit code of the command line.
    exit_code: int
    #: Its lines.
    lines: tuple[str, ...]


def recorded() -> dict[str, Message]:
    """All recorded texts by their key."""
    entries = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {key: Message(**{**entry, "lines": tuple(entry["lines"])}) for key, entry in entries.items()}


def keys_in(code: ast.AST) -> list[str]:
    """The keys that a piece of a test names, as texts or as texts with a part left open."""
    patterns = []
    for node in ast.walk(code):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            patterns.append("".join(".+" if part is None else re.escape(str(part)) for part in parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            patterns.append(re.escape(node.value))
    keys = recorded()
    return list(dict.fromkeys(key for found in patterns for key in keys if re.fullmatch(found, key)))


class Said:
    """Compares what was said with what is recorded.

    Args:
        url: The database of the test.
        directory: Where the test works.
    """

    def __init__(self, url: DatabaseURL, directory: Path) -> None:
        self._hidden = {url.location: "db.example:5432/keikaku_test", url.database: "keikaku_test"}
        self._hidden |= {str(directory): "/srv/keikaku"}

    def __call__(
        self,
        key: str,
        said: KeikakuError | tuple[int, str, str],
        kind: type[KeikakuError] | None = None,
        *,
        hide: Mapping[str, str] | None = None,
    ) -> None:
        """Compare.

        Args:
            key: Name of the text, with words of what happened.
            said: The error, or exit code, stdout and stderr of the command line.
            kind: The error's class, when only its text is there.
            hide: More that differs from run to run: pattern, what stands for it.
        """
        if isinstance(said, tuple):
            assert kind is not None, "the class of an error is not in its text"
            code, _, text = said
            assert code == kind.exit_code, text
        else:
            code, text = shown(said)
            kind = type(said)
        start = re.search(r"^error: ", text, re.MULTILINE)
        assert start is not None, text
        lines = tuple(self._without_varying(text[start.start() :], hide or {}).splitlines())
        now = Message(kind.__name__, code, lines)
        if os.environ.get(RECORD):
            _record(key, now)
        assert recorded().get(key) == now, f"{key}: {RECORD}=1 writes it\n" + "\n".join(lines)

    def _without_varying(self, text: str, hide: Mapping[str, str]) -> str:
        for word in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(word, self._hidden[word])
        for pattern, word in (*hide.items(), *_VARYING):
            text = re.sub(pattern, word, text)
        for pattern, numbered in _NUMBERED:
            for number, found in enumerate(dict.fromkeys(re.findall(pattern, text)), start=1):
                text = text.replace(found, numbered(number))
        return text


def shown(error: KeikakuError) -> tuple[int, str]:
    """What the command line makes of an error, with its remedy in Japanese."""
    before = os.environ.get("KEIKAKU_LANG")
    os.environ["KEIKAKU_LANG"] = "ja"
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            code = present(error, Output())
    finally:
        if before is None:
            del os.environ["KEIKAKU_LANG"]
        else:
            os.environ["KEIKAKU_LANG"] = before
    return code, stream.getvalue()


def _record(key: str, message: Message) -> None:
    with FILE.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        entries: dict[str, Any] = json.loads(file.read() or "{}")
        entries[key] = {"error": message.error, "exit_code": message.exit_code, "lines": message.lines}
        file.truncate(0)
        file.write(json.dumps(dict(sorted(entries.items())), ensure_ascii=False, indent=2) + "\n")
