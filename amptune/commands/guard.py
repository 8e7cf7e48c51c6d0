"""Work that may hang anywhere, in C code that never lets another thread run too, under a time limit that holds; and
work that may end its process, told in one message."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from amptune.errors import WorkError

INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM
POLL_SECONDS = 0.02
GRACE_SECONDS = 5.0
"""How long a child has to end after it was interrupted."""
PATIENCE_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1
_DONE = b"d"


class Terminated(KeyboardInterrupt):
    """SIGTERM, on which the work is undone as on Ctrl-C: its temporary files would stay otherwise."""


Finished = Callable[[], None]
"""What the work calls when all that may hang is over, before it writes its result."""


def guarded(
    seconds: float | None, work: Callable[[Finished], int], *, patience: float = PATIENCE_SECONDS, fork: bool = True
) -> int:
    """Run ``work`` and return its exit code; what has not called ``Finished`` by then is ended.

    ``seconds`` None is no limit; ``patience`` is how long the work has to end by itself on a Ctrl-C that a terminal has
    told it too, before it is told once more; ``fork`` False is for a process that goes on when the work is done.

    The work runs in a forked child and this process waits for it: a thread of the same process could not end code that
    holds the interpreter's lock. The child returns from here as well, and is expected to end with that exit code: a
    caller that goes on would do so twice. Where torch is loaded already (a fork would share its threads' locks), or
    where there is no fork, a thread has to do.

    Raises:
        WorkError: it did not finish, or the model ended the process.
    """
    if not (fork and hasattr(os, "fork")) or "torch" in sys.modules or threading.active_count() > 1:
        if seconds is None:
            return work(_nothing)
        with _Watchdog(seconds) as watchdog:
            return work(watchdog.cancel)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    _heed_sigterm()
    if child == 0:
        os.close(reader)
        _die_with(parent)
        return _in_child(work, writer)
    os.close(writer)
    os.set_blocking(reader, False)
    try:
        return _wait(child, reader, seconds)
    except Terminated:
        _stop(child, patience, signal.SIGTERM)
        return TERMINATED
    except KeyboardInterrupt:
        _stop(child, patience, signal.SIGINT)
        return INTERRUPTED
    finally:
        os.close(reader)


def _heed_sigterm() -> None:
    """Raise Terminated on SIGTERM from here on, unless somebody ignores or handles it already.

    Processes that the model forks end at once, as they would without this.
    """
    own = os.getpid()

    def raise_terminated(*_: object) -> None:
        if os.getpid() == own:
            raise Terminated
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, raise_terminated)


def _nothing() -> None:
    """What there is to do at the end where nothing watches."""


def _in_child(work: Callable[[Finished], int], writer: int) -> int:
    own, stdout = os.getpid(), _stdout_to_stderr()

    def finished() -> None:
        if os.getpid() != own:
            os._exit(0)  # the model forked, and its child came back with the rest of the work
        if stdout is not None:
            os.dup2(stdout, 1)
        os.write(writer, _DONE)

    try:
        return work(finished)
    except BaseException:
        finished()
        raise


def _stdout_to_stderr() -> int | None:
    """Send what C code and child processes of the model write to stdout to stderr; returns the real stdout."""
    try:
        stdout = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        return None
    return stdout


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent is gone, however that ended; elsewhere it runs to its end."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError, TypeError):
        return
    if os.getppid() != parent:
        os._exit(INTERRUPTED)


def _wait(child: int, reader: int, seconds: float | None) -> int:
    """The exit code of the child."""
    if seconds is None:
        return _code(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), done=_has_word(reader))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return _code(os.waitstatus_to_exitcode(status), done=_has_word(reader))
        if _has_word(reader):
            return _code(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), done=True)
        time.sleep(POLL_SECONDS)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise _late(seconds)


def _has_word(reader: int) -> bool:
    try:
        return bool(os.read(reader, 1))
    except BlockingIOError:
        return False


def _code(code: int, *, done: bool) -> int:
    """What this process exits with, for a child that exited with ``code``, negative for a signal."""
    if code == -signal.SIGINT:
        return INTERRUPTED
    if done and code >= 0:
        return code
    what = f"exited with code {code}"
    if code < 0:
        memory = ", as the system ends one when memory runs out" if -code == signal.SIGKILL else ""
        what = f"was ended by {signal.Signals(-code).name}{memory}"
    raise WorkError(
        f"the process that ran the model {what}",
        hint="run the model's forward by itself to see where that happens; a smaller batch takes less memory",
    )


def _stop(child: int, patience: float, told: signal.Signals) -> None:
    """End a child as this process was told to: a terminal has told it already, a program that signals this process
    alone has not. By the same signal: a shell has what it starts in the background ignore Ctrl-C."""
    for number, time_left in ((0, patience), (told, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        try:
            os.kill(child, number)
            if _wait_for(child, time_left):
                return
        except (ProcessLookupError, ChildProcessError):
            return


def _wait_for(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _late(seconds: float) -> WorkError:
    return WorkError(
        f"analyze did not finish within {seconds:g} s",
        hint="the model may hang or wait for input; --timeout gives it more time, a smaller batch less work",
    )


class _Watchdog:
    """Ends this process when the work inside takes too long; nothing has been written to stdout by then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> _Watchdog:
        self._timer.start()
        return self

    def cancel(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def _expire(self) -> None:
        error = _late(self._seconds)
        print(f"amptune: error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
