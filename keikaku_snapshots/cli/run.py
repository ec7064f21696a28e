"""Running one command: signals, the presenter of errors, the exit code.

Nothing else at the command line catches errors or leaves the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from keikaku_snapshots.cli.output import Output
from keikaku_snapshots.errors import KeikakuError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

#: What a shell reports for a program that a signal ended is 128 and its number.
_SIGNAL_BASE = 128

#: Seconds until an interruption that was lost comes again.
_AGAIN_S = 0.01

#: The variable by which a shell asks what TAB completes.
_COMPLETE = "_KEIKAKU_COMPLETE"

#: What whoever interrupts wants to know first.
LEFT = "no database and no snapshot is half changed"

#: Where an unexpected error is reported.
REPORT = "please report it with the output of the same command with -v"


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; cleans up along the same paths as Ctrl-C (FAULTS 46)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(command: click.Command, arguments: list[str], program: str) -> int:
    """Run a command and present whatever it raises.

    Args:
        command: The command or group.
        arguments: What was typed after the program's name.
        program: The name that help and errors show.

    Returns:
        The exit code.
    """
    _open_missing_streams()
    output = Output.from_arguments(arguments)
    if _COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, program, _COMPLETE, os.environ[_COMPLETE])
    _raise_on_signals()
    try:
        # Not `command.main`: it would turn every interruption into one kind
        # and end the process by itself when the reader has left.
        with (
            _no_signal_is_lost(),
            command.make_context(program, list(arguments), obj=output, color=output.colour_choice) as context,
        ):
            result = command.invoke(context)
        sys.stdout.flush()
    except BrokenPipeError:
        return _SIGNAL_BASE + signal.SIGPIPE  # the reader (head, less) has left
    except BaseException as error:  # noqa: BLE001 - the one place where everything ends
        return present(error, output)
    finally:
        _settle_streams()
    return result if isinstance(result, int) else 0


def _open_missing_streams() -> None:
    """Put /dev/null where the caller closed a standard stream.

    Python makes the stream None, and the next file that is opened gets its
    number: what a library writes to stderr would then be in that file.
    """
    missing = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    if not missing:
        return
    highest = 2
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= highest:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    for name in missing:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - as long as the process


def _settle_streams() -> None:
    """Let what cannot be written not fail again when Python flushes at exit, with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _raise_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise once; a second one ends the process at once."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        # `nohup keikaku …` has SIGHUP ignored and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


@contextlib.contextmanager
def _no_signal_is_lost() -> Iterator[None]:
    """Raise once more what Python loses when a signal comes inside a destructor or a callback."""
    before = sys.unraisablehook

    def again(unraisable: sys.UnraisableHookArgs) -> None:
        lost = unraisable.exc_value
        if not isinstance(lost, KeyboardInterrupt):
            before(unraisable)
            return
        error = type(lost)(*lost.args)

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            raise error

        # A little later: here it would only be lost again.
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def present(error: BaseException, output: Output) -> int:
    """Say what went wrong, in one form for everything, and choose the exit code.

    Args:
        error: What was raised.
        output: Where to say it.

    Returns:
        The exit code.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.Abort) and isinstance(error.__context__, _Terminated):
        error = error.__context__
    if isinstance(error, _Terminated):
        name = signal.Signals(error.number).name
        return _present(output, _SIGNAL_BASE + error.number, "Terminated", f"stopped by {name}", found=LEFT)
    # Ctrl-C at a question (Abort) is an answer too.
    if isinstance(error, click.Abort):
        return _present(
            output, _SIGNAL_BASE + signal.SIGINT, "Declined", "not confirmed, nothing was changed"
        )
    if isinstance(error, KeyboardInterrupt):
        return _present(output, _SIGNAL_BASE + signal.SIGINT, "Interrupted", "interrupted", found=LEFT)
    if isinstance(error, click.UsageError):
        return _present(output, 2, "UsageError", _usage_text(error), hint=_usage_hint(error))
    if isinstance(error, click.ClickException):
        return _present(output, 2, type(error).__name__, error.format_message())
    if isinstance(error, KeikakuError):
        _trace(error, output)
        return _present(
            output,
            error.exit_code,
            type(error).__name__,
            error.headline,
            found=error.found,
            hint=error.hint,
            hint_ja=_own_japanese(error),
            fallback_ja=error.hint_ja,
            execution_id=str(error.details.get("execution_id") or ""),
        )
    _trace(error, output)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _present(
        output, KeikakuError.exit_code, "UnexpectedError", f"unexpected error: {text}", hint=REPORT
    )


def _present(
    output: Output,
    code: int,
    kind: str,
    headline: str,
    *,
    found: str = "",
    hint: str = "",
    hint_ja: str = "",
    fallback_ja: str = "",
    execution_id: str = "",
) -> int:
    with contextlib.suppress(OSError):  # the terminal is gone; the code remains
        parts = _say(output, headline, found=found, hint=hint, hint_ja=hint_ja, fallback_ja=fallback_ja)
        if output.as_json:
            # Of a data patch a script must know which run it was.
            run = {"execution_id": execution_id} if execution_id else {}
            output.document({"error": {"type": kind, "exit_code": code, **parts}, **run})
    return code


def _say(
    output: Output, headline: str, *, found: str, hint: str, hint_ja: str, fallback_ja: str
) -> dict[str, str]:
    if not os.environ.get("KEIKAKU_LANG", "").lower().startswith("ja"):
        hint_ja = ""
    elif not hint_ja:
        from keikaku_snapshots.cli.remedies import in_japanese

        hint_ja = in_japanese(hint) or fallback_ja
    return output.error(headline, found=found, hint=hint, hint_ja=hint_ja)


def _own_japanese(error: KeikakuError) -> str:
    """The Japanese remedy that the error has itself; empty when its English one is another place's."""
    is_general = error.hint == error.default_hint
    return error.hint_ja if is_general or error.hint_ja != type(error).hint_ja else ""


def _trace(error: BaseException, output: Output) -> None:
    if output.verbose:
        import traceback

        output.raw("".join(traceback.format_exception(error)))


def _usage_text(error: click.UsageError) -> str:
    text = error.format_message().rstrip(".")
    return text[:1].lower() + text[1:] if text[:2].istitle() else text


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "keikaku"
    return f"`{path} --help` shows options and examples."
