"""The one thread that forks, and what a child does before it becomes another program.

Linux sends a child's death signal when the *thread* that forked it ends, so
that thread must live as long as the process (FAULTS 45). A death signal is not
inherited: the workers that ``pg_dump -j`` forks would go on. They hold a pipe
whose other end only this process has; when it is gone the kernel tells the
whole process group (``F_SETOWN``, ``F_SETSIG`` and ``O_ASYNC`` of fcntl(2)).
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

#: fcntl(2) command number of Linux; Python before 3.12 does not name it everywhere.
_F_SETSIG = 10
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


#: Ends of the pipe that tells programs of our death; the second one is never written to.
_life: tuple[int, int] | None = None


def _forget_launcher() -> None:
    # Threads do not survive os.fork(); a child that kept the object would wait for ever.
    global _launcher, _launcher_lock, _life  # noqa: PLW0603
    _launcher = None
    _launcher_lock = threading.Lock()
    # A child with the writing end would keep its parent alive for the parent's programs.
    ends, _life = _life, None
    for end in ends or ():
        os.close(end)


def open_life() -> int | None:
    """Return a descriptor for one program, by which it dies with us; the caller closes it after the start.

    Only in the thread that forks. None where the system has no such thing.
    """
    global _life  # noqa: PLW0603 - one for each process, by design
    if not sys.platform.startswith("linux"):
        return None
    try:
        if _life is None:
            _life = os.pipe()
        # Opened anew: whom the kernel tells is kept by the opened file, and each program is another group.
        return os.open(f"/proc/self/fd/{_life[0]}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


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


def child_setup(life: int | None = None) -> Callable[[], None]:
    """Return what the child does between fork and exec.

    Everything is looked up before the fork: the child of a process with
    threads must not import or allocate more than it has to.

    Args:
        life: From `open_life`; the child leads a process group of its own and inherits it.
    """
    set_mask, set_mask_how = signal.pthread_sigmask, signal.SIG_SETMASK
    if not sys.platform.startswith("linux"):
        return lambda: set_mask(set_mask_how, ()) and None
    import ctypes
    import fcntl

    library = ctypes.CDLL(None, use_errno=True)
    prctl, set_handler = library.prctl, library.signal
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    # A shell's `command &` ignores these two; an ignored signal stays ignored in the new program,
    # and psql could not be asked to cancel its query.
    to_default = (int(signal.SIGINT), int(signal.SIGQUIT))
    parent, getpid, getppid, leave, kill = os.getpid(), os.getpid, os.getppid, os._exit, int(signal.SIGKILL)
    control, set_owner, set_signal, set_flags = fcntl.fcntl, fcntl.F_SETOWN, _F_SETSIG, fcntl.F_SETFL
    flags = os.O_NONBLOCK | fcntl.FASYNC

    def setup() -> None:
        set_mask(set_mask_how, ())
        for number in to_default:
            set_handler(number, None)
        prctl(PR_SET_PDEATHSIG, kill, 0, 0, 0)
        if life is not None:
            control(life, set_signal, kill)
            control(life, set_owner, -getpid())
            control(life, set_flags, flags)
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
