"""What a client program wrote on its error output, read into its parts.

psql runs with ``VERBOSITY=verbose``: SQLSTATE, table and constraint are then
fields, whatever the language of the server. pg_dump and pg_restore have only
words, and those are English unless the server was told otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: Labels under which a message says more. Their values may be row data, except the names.
_LABEL = re.compile(
    r"(?P<label>DETAIL|HINT|QUERY|CONTEXT|SCHEMA NAME|TABLE NAME|COLUMN NAME|DATATYPE NAME"
    r"|CONSTRAINT NAME|LOCATION|STATEMENT|LINE \d+|Command was|detail|hint)\s?:\s*(?P<value>.*)"
)
_PRIMARY = re.compile(r"(?P<severity>ERROR|FATAL|PANIC|\w+):\s+(?:(?P<state>[0-9A-Z]{5}):\s)?(?P<text>.*)")
#: psql puts the place of the statement in front: ``psql:/path/file.sql:12:``.
_PLACE = re.compile(r"psql:(?P<file>.+?):(?P<line>\d+): (?P<rest>.*)")
_PROGRAM = re.compile(r"(?:pg_dump|pg_restore|psql): (?:error: |fatal: )?(?P<rest>.*)")
#: Labels whose values are names, by the field of an error.
NAMES = {
    "SCHEMA NAME": "schema",
    "TABLE NAME": "table",
    "COLUMN NAME": "column",
    "CONSTRAINT NAME": "constraint",
}
#: English words to the SQLSTATE they mean, for programs that do not print it.
_STATES = (
    (r"duplicate key value violates unique constraint|could not create unique index", "23505"),
    (r"violates foreign key constraint", "23503"),
    (r"violates not-null constraint|contains null values", "23502"),
    (r"violates check constraint|is violated by some row", "23514"),
    (r"violates exclusion constraint", "23P01"),
    (r"canceling statement due to lock timeout", "55P03"),
    (r"canceling statement due to statement timeout", "57014"),
    (r"terminating connection due to|the database system is shutting down", "57P01"),
    (r"row-level security policy", "42501"),
    (r"permission denied|must be (owner|superuser|member)", "42501"),
    (r'role ".*" does not exist', "42704"),
    (r"out of shared memory", "53200"),
    (r"invalid memory alloc request size|out of memory", "54000"),
    (r"cannot execute .* in a read-only transaction", "25006"),
    (r'extension ".*" is not available|could not open extension control file', "0A000"),
)


@dataclass(slots=True)
class ToolMessage:
    """The first error of a program's output, in parts."""

    #: SQLSTATE, or empty.
    state: str = ""
    #: Primary text, without row data where that is known.
    text: str = ""
    #: File of the script and its line.
    place: str = ""
    #: Label → value; row data among them.
    parts: dict[str, str] = field(default_factory=dict)


def public_stderr(text: str) -> str:
    """Return error output without the lines that quote rows or statements (FAULTS 33), for logs.

    Args:
        text: Redacted error output, such as `ToolResult.stderr`.

    Returns:
        Primary messages and names only.
    """
    kept: list[str] = []
    hiding = False
    for line in text.splitlines():
        label = _LABEL.match(_bare(line))
        if label is not None:
            hiding = label["label"] not in NAMES
        elif _begins(line):
            hiding = False
        elif kept and not hiding and line.startswith(("\t", " ")):
            pass  # libpq indents the second line of a connection error
        elif kept:
            hiding = True  # the rest of a value with line breaks in it
        if not hiding:
            kept.append(without_values(line))
    return "\n".join(kept)


def guess_state(text: str) -> str:
    """Return the SQLSTATE that English words mean; empty when they are not known.

    Args:
        text: Primary text of a message.
    """
    for pattern, state in _STATES:
        if re.search(pattern, text):
            return state
    return ""


def _bare(line: str) -> str:
    """Take the program's own prefix off a line."""
    match = _PLACE.match(line) or _PROGRAM.match(line)
    return match["rest"] if match else line


def _begins(line: str) -> bool:
    """Tell whether a line begins a message."""
    return bool(
        _PLACE.match(line) or _PROGRAM.match(line) or re.match(r"(ERROR|FATAL|PANIC|WARNING|NOTICE):", line)
    )


def without_values(text: str) -> str:
    """Take quoted values out of a message that has one: invalid input quotes what was read.

    Args:
        text: Primary text of a message.

    Returns:
        The same with an ellipsis in place of the value.
    """
    return re.sub(r'((?:invalid|out of range|malformed|too long)[^"]*: )".*', r"\1…", text, flags=re.DOTALL)


def read_message(stderr: str) -> ToolMessage:
    """Read the first error of a program's output.

    Args:
        stderr: Redacted error output.

    Returns:
        Its parts; what follows from the first error is left out.
    """
    message = ToolMessage()
    label = ""
    for line in stderr.splitlines():
        place = _PLACE.match(line)
        bare = _bare(line)
        found = _LABEL.match(bare)
        primary = _error_of(bare)
        if message.text and (place or primary) and not found:
            break  # the next message; what follows from the first is noise
        # pg_dump passes the server's word on behind "detail:".
        if primary is not None and not message.text and (not found or found["label"] == "detail"):
            message.state, message.text = primary["state"] or "", primary["text"]
            message.place = f"{place['file']}, line {place['line']}" if place else ""
        elif not message.text:
            continue
        elif found:
            label = found["label"]
            message.parts.setdefault(label, found["value"])
        elif label:
            message.parts[label] += "\n" + line
    return message


def _error_of(bare: str) -> re.Match[str] | None:
    # pg_dump and pg_restore put words in front: "query failed: ERROR:  …".
    for match in re.finditer(r"(?:^|(?<=: ))(?=(?:ERROR|FATAL|PANIC):|\w+:\s+[0-9A-Z]{5}:\s)", bare):
        primary = _PRIMARY.match(bare, match.start())
        if primary is not None and primary["severity"] not in {"NOTICE", "WARNING", "INFO", "LOG", "DEBUG"}:
            return primary
    return None
