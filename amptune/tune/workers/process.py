"""The parent's side of the worker: sends requests, waits with a time limit, replaces a worker that breaks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from amptune.errors import AmptuneError, WorkError
from amptune.tune.workers.job import Job
from amptune.tune.workers.messages import MessageError, packed, unpacked
from amptune.tune.workers.serve import OURS, SAFE_PATH, serve

GRACE_SECONDS = 5.0
SILENCE_SECONDS = 15.0
"""After so long without a word from the worker it is said that the request is still at work."""
OUT_OF_MEMORY = "the search trains in FP32 too, for comparison: give make_batch and train_batches smaller batches"
_PATH = tuple(sys.path)
"""Where modules were looked for before any target was loaded, which puts its folder first."""


class TrialError(Exception):
    """The request failed in a way that concerns only the candidate: crash, hang, out of memory, an exception.

    ``worker_lost``: the worker could not go on, which another process on the machine may have caused.
    ``is_of_users``: the user's code raised it, at a line that the reason names.
    ``held``: seconds that the reference took meanwhile, which are none of the candidate's.
    """

    def __init__(self, reason: str, details: str = "", *, worker_lost: bool = False, is_of_users: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.details = details
        self.worker_lost = worker_lost
        self.is_of_users = is_of_users
        self.held = 0.0


class _Deadline:
    """When a request has taken too long.

    It is held while the worker does what is no part of the request, which may take ``most`` seconds by itself.
    """

    def __init__(self, timeout: float, most: float) -> None:
        self._at, self._most = time.monotonic() + timeout, most
        self._held_since: float | None = None
        self.held = 0.0

    @property
    def at(self) -> float:
        """On the monotonic clock."""
        return self._at if self._held_since is None else self._held_since + max(self._most, self._at - self._held_since)

    def hold(self, is_held: bool) -> None:
        """Stop, or go on."""
        now = time.monotonic()
        if not is_held and self._held_since is not None:
            self._at += now - self._held_since
            self.held += now - self._held_since
        self._held_since = now if is_held else None


class WorkerProcess:
    """A persistent worker, started at the first request and again after it broke. Use as a context manager.

    ``start`` starts it earlier: it imports what it needs while this process finds out what ``job`` is.
    """

    def __init__(
        self,
        job: Job | None,
        on_progress: Callable[[str, int, int], None],
        on_silence: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.job = job
        self.on_progress = on_progress
        self.on_silence = on_silence
        self._has_job = False
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        """The result of one method of Worker.

        Raises:
            AmptuneError: what the worker raised for the user to read.
            TrialError: anything else; the worker is replaced where it has to be.
        """
        connection = self.start()
        deadline = _Deadline(timeout, self.job.options.trial_timeout if self.job else timeout)
        try:
            if not self._has_job:
                connection.send(self.job)
                self._has_job = True
            connection.send_bytes(packed((name, arguments)))
            return self._wait(connection, deadline, timeout)
        except TrialError as error:
            error.held = deadline.held
            raise
        except MessageError as error:  # the worker was not asked, or has answered: it goes on
            raise TrialError(f"what goes to the worker or comes from it for {name!r} {error}") from None
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise TrialError(f"the worker process died ({self._exit_reason()})", worker_lost=True) from None

    def stop(self) -> None:
        """End the worker, by force when it does not answer."""
        if self._connection is not None:
            self._connection.close()
        process, self._process, self._connection = self._process, None, None
        if process is not None:
            process.join(0.2)
            process.terminate()
            process.join(GRACE_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    def start(self) -> Connection:
        """Start the process unless it runs."""
        if self._connection is not None and self._process is not None and self._process.is_alive():
            return self._connection
        self.stop()
        # spawn: a forked child cannot use CUDA, and would inherit the parent's threads.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # No daemon, which could have no children: the user's DataLoader starts some. It ends with us all the same.
        self._process = context.Process(target=serve, args=(theirs,), daemon=False)
        with _deaf_to_interrupts(), _path_before_target():
            _start_tracker()
            self._process.start()
        theirs.close()
        self._connection, self._has_job = ours, False
        return ours

    def _wait(self, connection: Connection, deadline: _Deadline, timeout: float) -> Any:
        began = heard = time.monotonic()
        while True:
            if not connection.poll(max(0.0, min(deadline.at, heard + SILENCE_SECONDS) - time.monotonic())):
                heard = time.monotonic()
                if heard >= deadline.at:
                    self.stop()
                    raise TrialError(f"no result within {timeout:.0f} s", worker_lost=True)
                self.on_silence(heard - began)
                continue
            heard = time.monotonic()
            kind, content = unpacked(connection.recv_bytes())
            if kind == "progress":
                self.on_progress(*content)
            elif kind == "hold":
                deadline.hold(content)
            elif kind == "result":
                return content
            elif kind == "error":
                assert isinstance(content, AmptuneError)
                raise content
            else:
                reason, details, fatal, is_of_users = content
                if fatal:
                    self.stop()
                raise TrialError(reason, details, worker_lost=fatal, is_of_users=is_of_users)

    def _exit_reason(self) -> str:
        process = self._process
        if process is None:
            return "no process"
        process.join(GRACE_SECONDS)
        code = process.exitcode
        self.stop()
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _start_tracker() -> None:
    """Start Python's tracker of semaphores, which frees those of a worker that a signal ended, without its warning:
    that the worker is lost is told already. ``python -W`` brings it back."""
    if sys.warnoptions or os.name != "posix":
        return
    sys.warnoptions.append("ignore:resource_tracker")  # the tracker's process is started with them
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


@contextlib.contextmanager
def _path_before_target() -> Iterator[None]:
    """A process that starts here imports torch from where this one has it: the user's folder, first on the path since
    the target was loaded, may hold a ``random.py``. The worker puts it there when it loads the target itself. Nor does
    Python put the working directory there, as it does for code of the command line, which starts such a process."""
    kept, sys.path = sys.path, list(_PATH)
    is_ours = SAFE_PATH not in os.environ
    if is_ours:
        os.environ[SAFE_PATH] = OURS
    try:
        yield
    finally:
        sys.path = kept
        if is_ours:
            del os.environ[SAFE_PATH]


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that starts here ignores Ctrl-C until it says otherwise: importing, it would print a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def must(request: Callable[[], Any], what: str) -> Any:
    """The result of a request that the search cannot go on without.

    Raises:
        WorkError: it failed; the message says what was being done.
    """
    try:
        return request()
    except TrialError as failure:
        hint = OUT_OF_MEMORY if "out of memory" in failure.reason else _where_in_ours(failure)
        raise WorkError(f"{what}: {failure.reason}", hint=hint) from failure


def _where_in_ours(failure: TrialError) -> str | None:
    """The innermost line of the traceback, for a report; None where there is none, or the reason names the user's."""
    frames = [line.strip() for line in failure.details.splitlines() if line.startswith("  File ")]
    return f"raised at {frames[-1].removeprefix('File ')}" if frames and not failure.is_of_users else None
