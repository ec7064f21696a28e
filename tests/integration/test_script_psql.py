"""The splitter against psql itself: random scripts must be cut at the same places."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keikaku_snapshots.errors import SnapshotCorruptError
from keikaku_snapshots.snapshots.script import read_parts

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Server

#: What decides where a statement ends, and what only looks like it.
TOKENS = (
    *[
        "CREATE",
        "OR",
        "REPLACE",
        "FUNCTION",
        "PROCEDURE",
        "create function f()",
        "CREATE OR REPLACE PROCEDURE",
    ],
    *[
        "BEGIN ATOMIC ",
        "begin  atomic\n",
        "CASE",
        "case",
        "END",
        "end",
        "RETURN",
        "x",
        "日本",
        "_$",
        "e",
        "E",
    ],
    *[
        "'",
        "''",
        "E'",
        "e'",
        "U&'",
        'U&"',
        "N'",
        "B'",
        '"',
        '""',
        "\\'",
        "\\\\'",
        "\\\\",
        "'a;'",
        '"b;"',
        "E'\\';'",
    ],
    *[
        "$$",
        "$a$",
        "$b$",
        "$日$",
        "$1",
        "$1$",
        "$",
        "a$b$c",
        "$a$;$b$;$a$",
        "$$'$$",
        "1e",
        "1E'",
        "0x1",
        "1.$$",
    ],
    *["--", "-- ;'", "/*", "*/", "/* ; */", "/* /* ' */ ; */", "*/*", "@--", "+/*", "-", "*", "/", "@"],
    *[
        "(",
        ")",
        "((",
        "))",
        ";",
        ";",
        ";",
        ";",
        ";;",
        ",",
        "=",
        ".",
        "[",
        "]",
        "::",
        "SELECT",
        "SELECT 1",
        "\t",
    ],
)
SPACES = ("\n", "\n", " ", "")
_PIECE = st.tuples(st.sampled_from(TOKENS), st.sampled_from(SPACES)).map("".join)
_BLOCK = st.lists(_PIECE, min_size=1, max_size=8).map(lambda pieces: "".join(pieces) + "\n;\n")
BLOCKS = st.lists(_BLOCK, min_size=1, max_size=25)
#: Every rule at least once, each with a semicolon that does not end the statement.
EACH_RULE = [
    *["x E'\\';\n';\n", "x U&'\\';\n", "x ae'\\';\n", "x 'a''\n;';\n", 'x "a;\n"";\n";\n'],
    *["$a$;\n$b$;\n$a$;\n", "a$b$;\n", "$1$;\n", "$a;\n", "$\u65e5$;\n'$\u65e5$;\n", "$$;\n$a$$;\n"],
    *["/* /* ;\n*/ ;\n' */ x;\n", "x -- ;'\n;\n", "@--;\n;\n", "+/*;\n*/;\n", "x (;\n(;\n);\n);\n", "x );\n"],
    "create function f() BEGIN ATOMIC x;\nCASE END;\nx; END;\n",
    "CREATE OR REPLACE PROCEDURE f() begin  atomic\nx;\n(end;\n); END;\n",
    "CREATE FUNCTION f() RETURN CASE END;\n",
    "CREATE VIEW BEGIN ATOMIC x;\n",
    "x 1e--ENDN'\n;\n';\n",
    "x 1e$$'$$\n;\n';\n",
]
_SAID_AT = re.compile(r"^psql:[^:]+:(\d+): (?:ERROR|WARNING)", re.MULTILINE)
_COMMENTS = re.compile(rb"--[^\n]*|/\*.*?\*/", re.DOTALL)


def _cut_by_us(script: bytes) -> list[int] | None:
    """Lines on which a statement ends, empty ones left out; None for what we refuse."""
    try:
        parts = list(read_parts(script, name="random"))
    except SnapshotCorruptError:
        # Forbidden statements and psql commands are refused on purpose; psql is asked about the others only.
        return None
    return [
        script.count(b"\n", 0, part.end) + 1
        for part in parts
        if _COMMENTS.sub(b"", script[part.start : part.end]).strip(b"; \t\n")
    ]


def _cut_by_psql(server: Server, path: Path) -> list[int]:
    url = server.url
    ran = subprocess.run(
        [server.bin / "psql", "-Xqw", "-o", "/dev/null", "-f", path.name],
        cwd=path.parent,
        env={
            "PGHOST": url.host,
            "PGPORT": str(url.port),
            "PGUSER": url.user,
            "PGPASSWORD": url.password or "",
            "PGDATABASE": url.database,
            "PGCLIENTENCODING": "UTF8",
            "LC_ALL": "C",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return [int(line) for line in _SAID_AT.findall(ran.stderr)]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(blocks=BLOCKS)
def test_random_scripts_are_cut_where_psql_cuts_them(
    server: Server, tmp_path: Path, blocks: list[str]
) -> None:
    """FAULTS 28: every statement is nonsense, so psql says for each of them on which line it ended."""
    # What is open at the end of a block would only swallow the rest.
    closed = [block for block in blocks if _cut_by_us(block.encode()) is not None]
    # CREATE must be seen by psql as it is; a SELECT without error would not be heard of.
    script = re.sub(r"\bSELECT\b", "SELEKT", "".join(closed)).encode()
    path = tmp_path / "random.sql"
    path.write_bytes(script)
    ours = _cut_by_us(script)
    if ours is not None:
        assert ours == _cut_by_psql(server, path)


def test_each_rule_is_psqls(server: Server, tmp_path: Path) -> None:
    """FAULTS 28: one script with everything that hides a semicolon."""
    script = "".join(EACH_RULE).encode()
    path = tmp_path / "rules.sql"
    path.write_bytes(script)
    ours = _cut_by_us(script)
    assert ours == _cut_by_psql(server, path)
    assert len(ours or []) == len(EACH_RULE)
