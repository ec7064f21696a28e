"""After-restore hooks: what runs on the new database before it takes the old one's place.

A hook is a command, such as ``alembic upgrade head``, or a callable. Hooks run
in order on the database beside the live one; the first that fails ends the
restore, and the live database stays as it is. What they change is not counted
against the manifest: that was compared before.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from keikaku_snapshots._process import INHERIT_UMASK, ToolResult, start_tool
from keikaku_snapshots.errors import (
    HookFailedError,
    KeikakuError,
    OperationTimeoutError,
    ParameterTypeError,
    ToolMissingError,
    UsageError,
)
from keikaku_snapshots.postgres.sessions import sessions_ever
from keikaku_snapshots.postgres.url import DatabaseURL
from keikaku_snapshots.progress import Progress
from keikaku_snapshots.snapshots.hook_environment import hook_environment, names_database
from keikaku_snapshots.snapshots.parameters import check_number

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.progress import ProgressCallback

#: What a caller may give: a command as text or as its arguments, or a callable.
Hook: TypeAlias = str | Sequence[str | os.PathLike[str]] | Callable[[DatabaseURL], Any]

log = logging.getLogger("keikaku_snapshots.hooks")

#: Seconds for one hook: longer than a migration of test data, but nothing that waits for an answer
#: may hold the lock of the database for ever.
HOOK_TIMEOUT_S = 3600.0
#: Seconds until the server has counted a session that has ended.
_COUNTED_S = 1.0
#: Lines of a hook's output that an error shows.
_SHOWN_LINES = 20
#: Longest command in messages, in characters.
_LABEL_CHARACTERS = 200
#: A shell would do something with words of these; here they would be handed to the program.
_SHELL_CHARACTERS = frozenset("&|;<>")
#: Lines in which servers, drivers and SQLAlchemy quote rows.
_QUOTES_ROWS = re.compile(r"\s*(?:\S*:\s+)?(?:DETAIL|detail|CONTEXT):|\s*\[parameters: |\s*\[SQL: ")
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


@dataclass(frozen=True, slots=True)
class HookRun:
    """A hook that has done its work."""

    #: The command or the name of the callable, without secrets.
    hook: str
    #: Seconds it took.
    seconds: float


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LABEL_CHARACTERS else text[:_LABEL_CHARACTERS] + " …"


def check_hook_timeout(timeout_s: object) -> None:
    """Check the time limit of hooks.

    Args:
        timeout_s: Seconds, or None.

    Raises:
        ParameterTypeError: It is no number.
        UsageError: It is not above 0.
    """
    if timeout_s is not None:
        check_number("hook_timeout_s", timeout_s)
        if timeout_s == 0:
            raise UsageError("hook_timeout_s is 0", hint="Give seconds, or None for no limit.")


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
    lexer = shlex.shlex(text, posix=False, punctuation_chars=True)
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
                found=_hidden(hook.label, [url]),
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


@dataclass(slots=True)
class HookRunner:
    """Runs hooks on a database."""

    #: In order.
    hooks: Sequence[Command | Function]
    #: Seconds for each; None: no limit.
    timeout_s: float | None = HOOK_TIMEOUT_S
    #: Told before and after each hook, in steps.
    progress: ProgressCallback | None = None
    #: Those that have done their work.
    done: list[HookRun] = field(default_factory=list)
    #: What the user should know of them.
    warnings: list[str] = field(default_factory=list)

    def run(self, live: DatabaseURL, beside: DatabaseURL, admin: Connection) -> None:
        """Run all hooks, one after the other.

        Args:
            live: The database that will be replaced; no hook is given it.
            beside: The database that is being made; nobody is inside.
            admin: The maintenance database, in autocommit.

        Raises:
            HookFailedError: One failed; the later ones did not run.
        """
        begun = time.monotonic()
        for number, hook in enumerate(self.hooks, 1):
            self._tell(number - 1, begun)
            started = time.monotonic()
            before = sessions_ever(admin, beside.database)
            label = _hidden(hook.label, [live])
            log.info("after-restore hook %d: %s", number, label)
            if isinstance(hook, Command):
                self._command(hook, number, label, live, beside)
            else:
                self._function(hook, number, label, live, beside)
            self.done.append(HookRun(label, time.monotonic() - started))
            if not _came(admin, beside.database, before):
                self.warnings.append(
                    f"after-restore hook {number} ({label}) did not connect to the database it was given;"
                    " if it changes a database, it has an address of its own, and that was changed instead"
                )
        self._tell(len(self.hooks), begun)

    def _tell(self, done: int, begun: float) -> None:
        if self.progress is not None:
            count = len(self.hooks)
            seconds = time.monotonic() - begun
            self.progress(Progress("after-restore hooks", done, count, "steps", seconds, done == count))

    def _command(
        self, hook: Command, number: int, label: str, live: DatabaseURL, beside: DatabaseURL
    ) -> None:
        prepared = hook_environment(live, beside)
        try:
            running = start_tool(
                [hook.program, *hook.argv[1:]],
                env=prepared.env,
                timeout_s=self.timeout_s,
                redact=lambda text: _hidden(text, prepared.urls),
                on_end=prepared.remove,
                merge_output=True,
                umask=INHERIT_UMASK,
            )
        except BaseException as error:
            prepared.remove()
            if isinstance(error, KeikakuError):
                how = f"could not be started: {error.what}"
                raise _failed(number, label, how, live, reason=error.found, hint=error.hint) from error
            raise
        with running:
            try:
                result = running.wait()
            except OperationTimeoutError as error:
                output = str(error.details["stderr"])
                _log_output(number, output)
                raise _timed_out(number, label, self.timeout_s, live, output) from error
        _log_output(number, result.stderr)
        if not result.ok:
            how, hint = _ending(result)
            raise _failed(
                number, label, how, live, output=result.stderr, hint=hint, returncode=result.returncode
            )

    def _function(
        self, hook: Function, number: int, label: str, live: DatabaseURL, beside: DatabaseURL
    ) -> None:
        call = _Call(hook.call, beside)
        try:
            ended = call.wait(self.timeout_s)
        except BaseException:
            call.abandon()
            raise
        if not ended:
            call.abandon()
            raise _timed_out(number, label, self.timeout_s, live, "")
        error = call.error
        if isinstance(error, SystemExit) and error.code in {None, 0}:
            error = None  # the way in which a program's main function ends
        if error is not None:
            text = str(error).strip() or "without a message"
            how = f"raised {type(error).__name__}"
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else None
            raise _failed(
                number, label, how, live, output=_hidden(text, [beside]), returncode=code
            ) from error


def _came(admin: Connection, database: str, before: int) -> bool:
    """Whether somebody has connected to a database; the server counts that when the session rests or ends."""
    deadline = time.monotonic() + _COUNTED_S
    while sessions_ever(admin, database) == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class _Call:
    """A callable that runs in a thread of its own, so that it can be given up."""

    def __init__(self, call: Callable[[DatabaseURL], Any], url: DatabaseURL) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._url = url
        self._ended = threading.Event()
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="keikaku-hook", daemon=True
        )
        self._thread.start()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the end; False when the time was over first."""
        return self._ended.wait(timeout_s)

    def abandon(self) -> None:
        """Cancel what can be cancelled; ordinary code goes on, without its database."""
        if self._task is not None:
            loop, task = self._task
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)

    def _run(self) -> None:
        try:
            result = self._call(self._url)
            if inspect.isawaitable(result):
                asyncio.run(self._settle(result))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            self.error = error
        finally:
            self._ended.set()

    async def _settle(self, result: Any) -> None:
        async def awaited() -> Any:
            return await result

        work: Coroutine[Any, Any, Any] = awaited()
        task = asyncio.ensure_future(work)
        self._task = (asyncio.get_running_loop(), task)
        await task


def _hidden(text: str, urls: Iterable[DatabaseURL]) -> str:
    for url in urls:
        text = url.redact(text)
    # A command may hold the password of a place that we know nothing of.
    return re.sub(r"(\w+://[^\s:/@'\"]*):[^\s@'\"]*@", r"\1:***@", text)


def _ending(result: ToolResult) -> tuple[str, str]:
    """How a program ended, in words, and what to do."""
    if result.returncode >= 0:
        return f"ended with exit code {result.returncode}", ""
    with contextlib.suppress(ValueError):
        name = signal.Signals(-result.returncode).name
        hint = ""
        if result.returncode == -signal.SIGKILL:
            hint = "Something killed it, often the system when memory ran out (see dmesg). Restore again."
        return f"was ended by {name}", hint
    return f"was ended by signal {-result.returncode}", ""


def _timed_out(
    number: int, label: str, timeout_s: float | None, url: DatabaseURL, output: str
) -> HookFailedError:
    return _failed(
        number,
        label,
        f"was stopped after its time limit of {timeout_s:g} s",
        url,
        output=output,
        hint="Raise hook_timeout_s (--hook-timeout), or find out what the hook waits for; "
        "the database is unchanged.",
        timeout_s=timeout_s,
    )


def _failed(
    number: int,
    label: str,
    how: str,
    url: DatabaseURL,
    *,
    output: str = "",
    reason: str = "",
    hint: str = "",
    **facts: Any,
) -> HookFailedError:
    # Values of rows are for code only: `details` has them (B2).
    shown = [line for line in output.rstrip().splitlines() if not _QUOTES_ROWS.match(line)]
    lines = [f"Hook {number}: {label}", *reason.splitlines()]
    if shown:
        lines += ["The end of what it said:", *(f"  {line}" for line in shown[-_SHOWN_LINES:])]
    lines.append(f"Database: {url.location} (unchanged)")
    return HookFailedError(
        f"after-restore hook {number} {how}",
        found="\n".join(lines),
        hint=hint,
        hook=label,
        number=number,
        output=output,
        **{"returncode": None, **facts},
    )


def _log_output(number: int, output: str) -> None:
    for line in output.splitlines():
        if not _QUOTES_ROWS.match(line):
            log.info("hook %d: %s", number, line)
