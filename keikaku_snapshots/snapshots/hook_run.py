"""After-restore hooks run: on the database beside the live one, in order, until one fails.

The live database stays as it is when one does. What hooks change is not
counted against the manifest: that was compared before.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keikaku_snapshots._process import INHERIT_UMASK, ToolResult, start_tool
from keikaku_snapshots.errors import HookFailedError, KeikakuError, OperationTimeoutError
from keikaku_snapshots.postgres.sessions import sessions_ever
from keikaku_snapshots.progress import Progress
from keikaku_snapshots.snapshots.hook_environment import hook_environment
from keikaku_snapshots.snapshots.hooks import Command, Function, hidden
from keikaku_snapshots.snapshots.parameters import HOOK_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from keikaku_snapshots.postgres.connect import Connection
    from keikaku_snapshots.postgres.url import DatabaseURL
    from keikaku_snapshots.progress import ProgressCallback

log = logging.getLogger("keikaku_snapshots.hooks")

#: Seconds until the server has counted a session that has ended.
_COUNTED_S = 1.0
#: Lines of a hook's output that an error shows.
_SHOWN_LINES = 20
#: Lines in which servers, drivers and SQLAlchemy quote rows.
_QUOTES_ROWS = re.compile(r"\s*(?:\S*:\s+)?(?:DETAIL|detail|CONTEXT):|\s*\[parameters: |\s*\[SQL: ")


@dataclass(frozen=True, slots=True)
class HookRun:
    """A hook that has done its work."""

    #: The command or the name of the callable, without secrets.
    hook: str
    #: Seconds it took.
    seconds: float


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
            label = hidden(hook.label, [live])
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
                redact=lambda text: hidden(text, prepared.urls),
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
            raise _failed(number, label, how, live, output=hidden(text, [beside]), returncode=code) from error


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
