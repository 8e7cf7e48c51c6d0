"""What a person sees while the search runs: a live line on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


class Progress:
    """Prints stages and trials. ``budget`` gives the share done and the time left."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.started = time.monotonic()
        self.spent: dict[str, float] = {}
        self.best = ""
        self.before = 0
        self.done = 0
        self.kept = 0
        """Trials in the study when the search ended or was interrupted."""
        self._status: Status | None = None
        self._stage = ""
        self._notes: set[str] = set()

    @contextlib.contextmanager
    def live(self) -> Iterator[Progress]:
        """Show a live line while the block runs, where stderr is a terminal and rich is installed."""
        console = _console()
        if console is None:
            yield self
            return
        with console.status("starting", spinner="dots") as status:
            self._status = status
            try:
                yield self
            finally:
                self._status = None

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def stage(self, text: str, done: int = 0, total: int = 0, *, has_line: bool = False) -> None:
        """What is going on right now; where nothing is live, a line when it begins, unless it ends with a line."""
        if self._status is not None:
            count = f" {done}/{total}" if total else ""
            self._status.update(f"{text}{count}  [{self.elapsed()}{self._left()}]{self.best}")
        elif text != self._stage and not has_line:
            self.line(f"{text} ...")
        self._stage = text

    def still_at_work(self, seconds: float) -> None:
        """The stage goes on after so many seconds: a live line counts them, elsewhere a line says so."""
        if self._status is not None:
            self.stage(self._stage)
        elif self._stage:
            self.line(f"{self._stage} ... {seconds:.0f} s")

    def notes(self, texts: Iterable[str]) -> None:
        """A line for each note that was not shown before."""
        for text in texts:
            if text not in self._notes:
                self._notes.add(text)
                self.line(f"note: {text}")

    def resume(self, done: int) -> None:
        """Trials of the budget that an earlier run has done."""
        self.before = done

    def trial(self, text: str, best: str) -> None:
        """A finished trial, and the best so far."""
        self.done += 1
        self.best = f"  best: {best}" if best else ""
        self.line(f"[{self.before + self.done}/{self.budget}] {text}")

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds of the block to ``spent``."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + time.monotonic() - begin

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def elapsed(self) -> str:
        """Time since the start, such as 1:05."""
        return _clock(time.monotonic() - self.started)

    def _left(self) -> str:
        if not self.done:
            return ""
        per_trial = (time.monotonic() - self.started) / self.done
        return f", about {_clock(per_trial * max(0, self.budget - self.before - self.done))} left"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _console() -> Console | None:
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(stderr=True)
