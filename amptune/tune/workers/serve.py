"""The worker process itself: it takes a job, and answers one request after the other until the parent is done."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from amptune.capture.usercode import place_of
from amptune.errors import AmptuneError
from amptune.tune.running.childprocess import (
    end_with_parent,
    import_ahead,
    is_fatal,
    quieten_torch,
    start_children_as_usual,
)
from amptune.tune.running.compilation import cause_in_compiler
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.workers.job import Job
from amptune.tune.workers.messages import MessageError, packed, unpacked
from amptune.tune.workers.preparing import Hold, Report
from amptune.tune.workers.worker import Worker

SAFE_PATH, OURS = "PYTHONSAFEPATH", "amptune"
"""The variable that keeps the working directory off a starting Python's path, and its value where we set it."""


def serve(connection: Connection) -> None:
    """Entry point of the child: take a job, build a Worker, answer requests until the pipe closes."""
    # What the user's code prints must not mix with what the command was asked for on stdout.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # it is seen when it is printed, not when the process ends
    if os.environ.get(SAFE_PATH) == OURS:
        del os.environ[SAFE_PATH]  # programs that the user's code starts find their files as ever
    quieten_torch()
    end_with_parent()
    start_children_as_usual()

    def report(text: str, done: int, total: int) -> None:
        connection.send(("progress", (text, done, total)))

    def hold(is_held: bool) -> None:
        connection.send_bytes(packed(("hold", is_held)))

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import_ahead()
        job: Job = connection.recv()
    except (EOFError, KeyboardInterrupt):
        return
    torch.set_num_threads(job.threads)
    answers = _Answers(job, report, hold)
    while True:
        try:
            connection.send_bytes(_answer(answers, connection.recv_bytes()))
        except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
            return  # the parent has gone, or given this trial up: nobody waits for an answer


def _answer(answers: _Answers, request: bytes) -> bytes:
    """The answer to a request, or that one of the two cannot go through the pipe."""
    name = "a request"
    try:
        name, arguments = unpacked(request)
        return packed(answers.to(name, arguments))
    except MessageError as error:
        return packed(("failure", (f"the worker's answer to {name!r} {error}", "", False, False)))


class _Answers:
    """What a worker, made for the first request, answers."""

    def __init__(self, job: Job, report: Report, hold: Hold) -> None:
        self._job, self._report, self._hold = job, report, hold
        self._worker: Worker | None = None

    def to(self, name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        """A result, an error for the user, or what failed."""
        try:
            self._worker = self._worker or Worker(self._job, self._report, self._hold)
            return "result", getattr(self._worker, name)(*arguments)
        except AmptuneError as error:
            return "error", error
        except Exception as error:
            place = place_of(error)
            reason = cause_in_compiler(error) or plain_reason(error, place)
            return "failure", (reason, traceback.format_exc(), is_fatal(error), bool(place))
