"""README and docs hold only commands that work when pasted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.documents import pieces

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL
    from tests.prefork import Prefork
    from tests.servers import Server

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md"])
#: Nothing but our command and its arguments: no pipe, variable or escape for a shell to see to.
PLAIN = re.compile(r"keikaku [^|&;<>$`*?()~#!\\\n]+")
TIMEOUT_S = 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_the_page_works_when_pasted(
    page: Path, server: Server, database: DatabaseURL, tmp_path: Path, prefork: Prefork
) -> None:
    """A reader who pastes the page from top to bottom meets no surprise.

    The first command is given to a shell, and each that needs one; starting Python anew for the others
    would take longer than they do.
    """
    has_started = False
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(server.bin), os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "KEIKAKU_DB_URL": database.text,
        "NO_COLOR": "1",
        # A third of what it costs to start pytest, and not on any page.
        "PYTEST_ADDOPTS": "-p no:hypothesispytest",
    }
    for piece in pieces(page):
        if piece.kind == "not run":
            assert len(piece.text.split()) > 2, f"{page}:{piece.line}: say why it is not run"
        elif piece.kind == "file":
            target = tmp_path / piece.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(piece.text, encoding="utf-8")
        else:
            if has_started and piece.kind == "command" and PLAIN.fullmatch(piece.text):
                words = shlex.split(piece.text)[1:]
                done = prefork.run(words, cwd=tmp_path, env=environment, timeout_s=TIMEOUT_S)
            else:
                program = ["bash", "-c"] if piece.kind == "command" else [sys.executable, "-c"]
                done = subprocess.run(
                    [*program, piece.text],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_S,
                    check=False,
                    stdin=subprocess.DEVNULL,
                )
                has_started |= piece.text.startswith("keikaku ")

            assert done.returncode == piece.exit_code, (
                f"{page.relative_to(ROOT)}:{piece.line}: {piece.text}\n{done.stdout}\n{done.stderr}"
            )
