"""The one thread that forks, and what a child does before it becomes another program.

Linux sends a child's death signal when the *thread* that forked it ends, so
that thread must live as long as the process (FAULTS 45).
"""

from __future__ import annotations

import os
import queue
import re
import signal
import sys
import threading
import warnings
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

#: prctl(2) option number; the same on every Linux architecture.
PR_SET_PDEATHSIG = 1


class Launcher:
    """The one thread that forks."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="keikaku-launcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            job, future = self._requests.get()
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                future.set_exception(error)
            del job, future

    def submit(self, job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._requests.put((job, future))
        return future


_launcher: Launcher | None = None
_launcher_lock = threading.Lock()


def _get_launcher() -> Launcher:
    global _launcher  # noqa: PLW0603 - one for each process, by design
    with _launcher_lock:
        if _launcher is None:
            _launcher = Launcher()
        return _launcher


def _forget_launcher() -> None:
    # Threads do not survive os.fork(); a child that kept the object would wait for ever.
    global _launcher, _launcher_lock  # noqa: PLW0603
    _launcher = None
    _launcher_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_launcher)


#: What Python 3.12 and newer say when a process with threads forks.
_FORK_WARNING = r"This process \(pid=\d+\) is multi-threaded, use of fork"
_FORK_FILTER = ("ignore", re.compile(_FORK_WARNING, re.IGNORECASE), DeprecationWarning)


def allow_fork_with_threads() -> None:
    """Silence the warning about what `child_setup` does, which is safe after a fork.

    One narrow filter that stays: `warnings.catch_warnings` sets the filters of all threads
    back when it ends, those that another thread has made in between too.
    """
    if sys.version_info >= (3, 12) and not any(one[:3] == _FORK_FILTER for one in warnings.filters):
        warnings.filterwarnings("ignore", message=_FORK_WARNING, category=DeprecationWarning)


def child_setup() -> Callable[[], None]:
    """Return what the child does between fork and exec.

    Everything is looked up before the fork: the child of a process with
    threads must not import or allocate more than it has to.
    """
    set_mask, set_mask_how = signal.pthread_sigmask, signal.SIG_SETMASK
    if not sys.platform.startswith("linux"):
        return lambda: set_mask(set_mask_how, ()) and None
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    prctl, set_handler = library.prctl, library.signal
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    # A shell's `command &` ignores these two; an ignored signal stays ignored in the new program,
    # and psql could not be asked to cancel its query.
    to_default = (int(signal.SIGINT), int(signal.SIGQUIT))
    parent, getppid, leave, kill = os.getpid(), os.getppid, os._exit, int(signal.SIGKILL)

    def setup() -> None:
        set_mask(set_mask_how, ())
        for number in to_default:
            set_handler(number, None)
        prctl(PR_SET_PDEATHSIG, kill, 0, 0, 0)
        # The parent may have died before prctl; then no signal will ever come.
        if getppid() != parent:
            leave(127)

    return setup


def launch(job: Callable[[], Result]) -> Future[Result]:
    """Run a job in the thread that forks.

    Args:
        job: Starts a program and returns at once.

    Returns:
        What the job returns or raises.
    """
    return _get_launcher().submit(job)
