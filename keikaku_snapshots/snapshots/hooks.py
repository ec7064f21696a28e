"""After-restore hooks as they are given: commands such as ``alembic upgrade head``, and callables.

They are understood, and refused, before anything is done; `hook_run` runs them
on the new database before it takes the old one's place.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from keikaku_snapshots.errors import ParameterTypeError, ToolMissingError, UsageError
from keikaku_snapshots.postgres.url import DatabaseURL
from keikaku_snapshots.snapshots.hook_environment import names_database

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What a caller may give: a command as text or as its arguments, or a callable.
Hook: TypeAlias = str | Sequence[str | os.PathLike[str]] | Callable[[DatabaseURL], Any]

#: Longest command in messages, in characters.
_LABEL_CHARACTERS = 200
#: A shell would do something with words of these; here they would be handed to the program.
_SHELL_CHARACTERS = frozenset("&|;<>")
# What no shell would look into.
_QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
#: Programs that take the name of a database as a word, for which it is looked at.
_CLIENTS = frozenset({"psql", "pgbench", "pg_restore", "vacuumdb", "reindexdb", "clusterdb", "dropdb"})


@dataclass(frozen=True, slots=True)
class Command:
    """A hook that is a program."""

    #: The program, as it was written and looked up, and its arguments.
    argv: tuple[str, ...]
    #: Absolute path of the program.
    program: str

    @property
    def label(self) -> str:
        """For messages, once redacted."""
        return _shortened(shlex.join(self.argv))


@dataclass(frozen=True, slots=True)
class Function:
    """A hook that is a Python callable; its result is awaited when it can be."""

    #: Takes the URL of the database.
    call: Callable[[DatabaseURL], Any]

    @property
    def label(self) -> str:
        """For messages."""
        name = getattr(self.call, "__qualname__", "") or type(self.call).__qualname__
        module = getattr(self.call, "__module__", "") or ""
        return _shortened(f"{module}.{name}" if module else name)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LABEL_CHARACTERS else text[:_LABEL_CHARACTERS] + " …"


def read_hooks(given: Any, live: DatabaseURL | None = None) -> tuple[Command | Function, ...]:
    """Understand what a caller gave as hooks, and find their programs.

    Args:
        given: Hooks in order; one text or callable alone is one hook.
        live: The database that will be replaced, which no command may name.

    Returns:
        The hooks.

    Raises:
        ParameterTypeError: One of them is nothing that can be run.
        UsageError: A command is empty, asks for a shell, or names the live database.
        ToolMissingError: The program of a command is not there.
    """
    if given is None:
        return ()
    if isinstance(given, str | os.PathLike) or callable(given):
        given = (given,)
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise ParameterTypeError(
            f"after_restore must be a sequence of commands and callables, not {type(given).__name__}"
        )
    hooks = tuple(_read(one, number) for number, one in enumerate(given, 1))
    if live is not None:
        _refuse_named(hooks, live)
    return hooks


def _read(one: Any, number: int) -> Command | Function:
    if callable(one):
        return Function(one)
    if isinstance(one, str):
        words = _split(one, number)
    elif isinstance(one, os.PathLike):
        words = [os.fspath(one)]
    elif isinstance(one, Sequence) and not isinstance(one, bytes | bytearray):
        words = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in one]
    else:
        words = [one]
    if not all(isinstance(word, str) for word in words):
        raise ParameterTypeError(
            f"hook {number} of after_restore is neither a command nor a callable",
            found=f"it is of type {type(one).__name__}",
            hint="Give a text, a sequence of texts, or a callable that takes the URL of the database.",
        )
    if not words or not words[0].strip():
        raise UsageError(f"hook {number} of after_restore is empty", hint="Give a command, or leave it out.")
    if any("\0" in word for word in words):
        raise UsageError(f"hook {number} of after_restore holds a NUL character")
    return Command(tuple(words), _find_program(words[0], number))


def _split(text: str, number: int) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"hook {number} of after_restore cannot be split into words",
            found=f"{error}: {_shortened(text)}",
            hint="Close the quotation marks; the command is split as a shell would.",
        ) from None
    lexer = shlex.shlex(_QUOTED.sub("x", text), posix=False, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    operators = [word for word in lexer if set(word) <= _SHELL_CHARACTERS]
    if operators:
        raise UsageError(
            f"hook {number} of after_restore needs a shell, but is run without one",
            found=f"it holds {' '.join(operators)}: {_shortened(text)}",
            hint="Give several hooks, which run one after the other, or say it: sh -c '…'.",
        )
    return words


def _find_program(word: str, number: int) -> str:
    """Look in PATH, then beside the Python that runs this: cron knows no virtual environment."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(word) or (None if os.sep in word else shutil.which(word, path=beside))
    if found is None:
        raise ToolMissingError(
            f"the program of hook {number} of after_restore is not there",
            found=f"looked for {word!r} in PATH and in {beside}",
            hint="Correct its name or give its path. A command with its arguments is one text, or one "
            "sequence within the sequence; a variable in front needs env: `env NAME=VALUE PROGRAM`.",
        )
    return os.path.abspath(found)  # noqa: PTH100 - a link stays one: a virtual environment is found by it


def _refuse_named(hooks: Iterable[Command | Function], url: DatabaseURL) -> None:
    """Refuse commands that name the live database: they would work on it, not on the new one."""
    for number, hook in enumerate(hooks, 1):
        if isinstance(hook, Command) and _names_live(hook, url):
            raise UsageError(
                f"hook {number} of after_restore names the live database {url.database!r}",
                found=hidden(hook.label, [url]),
                hint="Leave the database out: the hook finds the new one in KEIKAKU_DB_URL, DATABASE_URL "
                "and the PG* variables, and it takes the old one's name afterwards.",
            )


def _names_live(hook: Command, url: DatabaseURL) -> bool:
    name = url.database
    if Path(hook.program).name in _CLIENTS:
        # Also behind an option, because nobody knows which options take a value.
        named = {name, f"-d{name}", f"--dbname={name}"}
        if named & set(hook.argv[1:]):
            return True
    return any(names_database(word, name) for word in hook.argv[1:])


def check_hooks_possible(
    hooks: Sequence[Command | Function], *, strategy: str = "", format_name: str = ""
) -> None:
    """Refuse hooks where no new database is built beside the old one.

    Args:
        hooks: The hooks.
        strategy: What the caller asked for.
        format_name: Format of the snapshot.

    Raises:
        UsageError: There are hooks, and nothing beside for them.
    """
    if hooks and (strategy == "in_place" or format_name == "json"):
        why = "strategy='in_place'" if strategy == "in_place" else "test data"
        raise UsageError(
            f"after-restore hooks cannot run with {why}",
            found="They need a database beside the live one, so that their failure changes nothing.",
            hint="Use strategy='swap', or leave the hooks out (--no-after-restore) and run them yourself "
            "afterwards.",
        )


def hidden(text: str, urls: Iterable[DatabaseURL]) -> str:
    """Return a text without passwords.

    Args:
        text: A command or its output.
        urls: What is known to have a password.

    Returns:
        The text, with ``***`` in their place.
    """
    for url in urls:
        text = url.redact(text)
    # A command may hold the password of a place that we know nothing of.
    return re.sub(r"(\w+://[^\s:/@'\"]*):[^\s@'\"]*@", r"\1:***@", text)
