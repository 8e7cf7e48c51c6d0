"""What the tune report shows, read from the content of result.json into nouns; gaps in the data become ``None``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

MAYBE_FASTER = 1.01
"""A plan that seemed this many times as fast as the best stock recipe may be so."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Milliseconds of one training step: median and quartiles of ``repeats`` steps."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def read(cls, data: object) -> Spread | None:
        """From ``{"median", "low", "high", "repeats"}``; None for anything else."""
        if not isinstance(data, Mapping):
            return None
        median = number(data.get("median"))
        if median is None:
            return None
        low, high = (number(data.get(key)) for key in ("low", "high"))
        low, high = min(median if low is None else low, median), max(median if high is None else high, median)
        return cls(median, low, high, data.get("repeats", 0))


@dataclasses.dataclass(frozen=True)
class Run:
    """One measured way to train the model: a trial, a stock recipe or the winner.

    Attributes:
        number: of the trial; None when it is not known.
        kind: ``stock``, ``front``, ``search`` or ``repeat``.
        state: ``valid``, ``invalid`` (measured, but it trains worse), ``slow`` (given up) or ``failed``.
        name: the stock recipe's, or ``plan``.
        reason: why it is not valid.
        step: step time; None when it was not measured.
        predicted: step time in milliseconds that the cost model foretold.
        paired: step time by the one of an earlier trial that it was timed in turns with; None where it was not.
        usual: the same by what later trials told of that one's step; None where none did.
        memory: peak bytes; None where torch does not count.
        gap: signed relative loss gap to the FP32 reference.
        upper: upper end of the 95 % interval of ``gap``.
        cosine: the worst gradient's cosine to the reference's.
        evaluation: the user's ``evaluate``, higher is better.
    """

    number: int | None
    kind: str
    state: str
    name: str
    reason: str = ""
    step: Spread | None = None
    predicted: float | None = None
    paired: float | None = None
    usual: float | None = None
    memory: float | None = None
    gap: float | None = None
    upper: float | None = None
    cosine: float | None = None
    evaluation: float | None = None

    @classmethod
    def read(cls, data: Mapping[str, Any], kind: str = "search") -> Run:
        """From a trial, or from an entry of ``stock``, ``best`` or ``repeats``, which say ``valid`` for ``state``."""
        step = Spread.read(data.get("step_ms"))
        measured = "valid" if data.get("valid") else "invalid" if step else "failed"
        return cls(
            number=data.get("number", data.get("trial")),
            kind=str(data.get("kind") or kind),
            state=str(data.get("state") or measured),
            name=str(data.get("recipe") or "plan"),
            reason=str(data.get("reason") or ""),
            step=step,
            predicted=number(data.get("predicted_ms")),
            paired=number(data.get("paired_ms")),
            usual=number(data.get("usual_ms")),
            memory=number(data.get("memory_bytes")),
            gap=number(data.get("loss_gap")),
            upper=number(data.get("loss_gap_upper")),
            cosine=number(data.get("worst_cosine")),
            evaluation=number(data.get("evaluation")),
        )

    @property
    def valid(self) -> bool:
        """Whether it trains as well as the FP32 reference."""
        return self.state == "valid"

    @property
    def median(self) -> float:
        """Step time in milliseconds by the clock; infinite when it was not measured."""
        return self.step.median if self.step else math.inf

    @property
    def compared(self) -> float:
        """Step time on the scale of what was predicted: an unsteady one may have met a slow moment of the host."""
        return self.median if self.paired is None else self.paired

    @property
    def ranked(self) -> float:
        """Step time by which the search ranked it: all trials as at one moment of the host."""
        return self.compared if self.usual is None else self.usual

    @property
    def title(self) -> str:
        """How a person would call it."""
        trial = "" if self.number is None else f"trial {self.number}: "
        return f"{trial}{self.name if self.name != 'plan' else f'plan ({self.kind})'}"


@dataclasses.dataclass(frozen=True)
class TuneData:
    """The content of result.json.

    Attributes:
        verdict: ``plan``, ``stock`` or ``invalid``.
        stock: the stock recipes, as they were measured in their trials.
        best: what was emitted, with its step time in the repeats.
        best_stock: the fastest valid stock recipe, with its step time in the repeats.
        speedup, speedup_low: of ``best`` over ``best_stock``, median of paired rounds and lower end of the interval.
        formats_only: speedup without the choices of loss and layout; None when it was not measured.
        missed: speedup of the best plan in the repeats, where it did not win; None when none was repeated.
        stock_in_parts: that of the best stock recipe with the plan's parts compiled; None when it was not measured.
        tolerance, noise: largest loss gap that is allowed, and the reference's own, as shares.
        raw: all fields, for what is shown as it is.
    """

    verdict: str
    stock: tuple[Run, ...]
    trials: tuple[Run, ...]
    best: Run | None
    best_stock: Run | None
    speedup: float
    speedup_low: float | None
    formats_only: float | None
    stock_in_parts: float | None
    missed: float | None
    tolerance: float
    noise: float
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> TuneData:
        """From the content of result.json, schema version 1."""
        trials = tuple(Run.read(entry) for entry in data.get("trials") or ())
        # An entry says whether it is valid, its trial also whether it failed or was given up as too slow.
        states: dict[int | None, str] = {run.number: run.state for run in trials if run.number is not None}
        entries = [Run.read(entry, "stock") for entry in data.get("stock") or ()]
        stock = tuple(dataclasses.replace(run, state=states.get(run.number, run.state)) for run in entries)
        repeated = (data.get("repeats") or {}).get("stock")
        best = data.get("best")
        return cls(
            verdict=str(data.get("verdict", "invalid")),
            stock=stock,
            trials=trials,
            best=Run.read(best) if best else None,
            best_stock=Run.read(repeated, "stock") if repeated else fastest(stock),
            speedup=number(data.get("speedup_over_best_stock")) or 1.0,
            speedup_low=number(data.get("speedup_low")),
            formats_only=number((data.get("attribution") or {}).get("without_loss_and_layout")),
            stock_in_parts=number((data.get("attribution") or {}).get("stock_in_parts")),
            missed=number((data.get("missed") or {}).get("speedup")),
            tolerance=number(data.get("tolerance")) or 0.0,
            noise=number(data.get("noise")) or 0.0,
            raw=data,
        )

    @property
    def threshold(self) -> float:
        """Largest loss gap that counts as training as well."""
        known = [number(trial.get("loss_gap_allowed")) or 0.0 for trial in self.raw.get("trials", ())]
        return max(self.tolerance, self.noise, *known)

    @property
    def repeated(self) -> bool:
        """Whether the best stock recipe was measured again after the search."""
        if "repeated" in self.raw:
            return bool(self.raw["repeated"])
        trial = next((run for run in self.stock if self.best_stock and run.name == self.best_stock.name), None)
        return trial is not None and self.best_stock is not None and trial.step != self.best_stock.step

    @property
    def winner(self) -> int | None:
        """Number of the trial that was emitted."""
        return self.best.number if self.best else None


def number(value: object) -> float | None:
    """``value`` when it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def fastest(runs: Iterable[Run]) -> Run | None:
    """The fastest valid run, if there is one."""
    return min((run for run in runs if run.valid and run.step), key=lambda run: run.ranked, default=None)


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both coordinates (smaller is better), by the first coordinate."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def ms(value: float | None) -> str:
    """Milliseconds with about four figures."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f} ms"


def percent(value: float | None, *, signed: bool = True) -> str:
    """A share in percent, with three decimals."""
    if value is None:
        return "–"
    return f"{value:+.3%}" if signed else f"{value:.3%}"
