"""What is known about a model beside its graph: assumptions on its values, and what was seen of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import NOTHING, Assumptions, Ranges
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.core.observed import Observed, Stat

JUDGED = (Format.FP16, Format.BF16, Format.FP8_E4M3, Format.FP8_E5M2)
FITS, MAY, DOES = "cannot overflow", "may overflow", "overflows"
RANGES_VERSION = 1
_VALUES = frozenset({"float64", "float32", "bfloat16", "float16", "uint8"})
"""Types of inputs that are numbers to compute with, rather than indices."""


@dataclasses.dataclass(frozen=True)
class DynamicDim:
    """A dimension of a tensor of the batch that changes from batch to batch, and the sizes that were seen."""

    name: str
    axis: int
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class InputRange:
    """The bounds of one tensor of the batch, and who says so: ``--range``, ``batch`` or ``type``."""

    name: str
    range: Range
    source: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Beside the graph.

    Attributes:
        facts: bounds that every rule may use: those that the user stated, and of parameters that scale and shift.
        assumptions: those and the values of the batch and of the initial weights, for bounds that depend on them;
            ``None`` where nothing was looked at.
        inputs: the bounds of the batch by the names that the user knows.
        weights: how the bounds of the weights came about, in words.
        asked: whether the user asked for ranges.
        observed: a recorded step, where one was asked for.
        dynamic: dimensions that change from batch to batch.
    """

    facts: Assumptions = NOTHING
    assumptions: Assumptions | None = None
    inputs: tuple[InputRange, ...] = ()
    weights: str = ""
    asked: bool = False
    observed: Observed | None = None
    dynamic: tuple[DynamicDim, ...] = ()

    def of_calls(self, calls: PrecisionGraph) -> Evidence:
        """The same for a graph with each call apart: what was seen of a site was seen of all its calls together."""
        return dataclasses.replace(self, observed=self.observed.of_calls(calls)) if self.observed else self

    @property
    def stated(self) -> str:
        """What the user stated, for a message: ``, with x in [0, 255] (--range)``; empty where that is nothing."""
        parts = [f"{each.name} in {each.range} ({each.source})" for each in self.inputs if each.source == "--range"]
        return f", with {', '.join(parts)}" if parts else ""

    @property
    def words(self) -> str:
        """The assumptions for a message: ``x in [0, 255] (--range), weights as make_model() gives them``."""
        told = [each for each in self.inputs if each.source == "--range" or each.dtype in _VALUES]
        parts = [f"{each.name} in {each.range} ({each.source})" for each in told if each.range.is_known]
        return ", ".join([*parts, f"weights {self.weights}"])


def verdict(bound: Range, seen: Stat | None, number_format: Format) -> str:
    """Whether values fit a format: seen or certain to be outside, certain to be inside, or neither."""
    if seen is not None and seen.overflows(number_format):
        return DOES
    if not bound.is_known:
        return MAY
    ends = [number_format.round(end) if math.isfinite(end) else end for end in (bound.low, bound.high)]
    if all(math.isfinite(end) for end in ends):
        return FITS
    return DOES if bound.low > number_format.max or bound.high < -number_format.max else MAY


def ranges_section(bounds: Ranges, evidence: Evidence) -> dict[str, Any]:
    """The ``ranges`` section of the JSON report. An end of a bound that is not known is null."""
    observed = evidence.observed
    return {
        "version": RANGES_VERSION,
        "assumed": {
            "inputs": {
                each.name: {**_ends(each.range), "source": each.source, "dtype": each.dtype} for each in evidence.inputs
            },
            "weights": evidence.weights,
        },
        "observed": None if observed is None else {"device": observed.device, "loss": observed.loss},
        "sites": {name: _of_site(bound, name, observed) for name, bound in bounds.by_site().items()},
    }


def _of_site(bound: Range, name: str, observed: Observed | None) -> dict[str, Any]:
    seen = observed.forward.get(name) if observed else None
    gradient = observed.gradient.get(name) if observed else None
    found: dict[str, Any] = {
        "bound": _ends(bound),
        "verdict": {str(each): verdict(bound, seen, each) for each in JUDGED},
    }
    for key, stat in (("observed", seen), ("gradient", gradient)):
        if stat is not None:
            shares = {str(each): round(stat.underflow(each), 6) for each in JUDGED}
            found[key] = {**stat.to_json(), "underflow": shares}
    return found


def _ends(bound: Range) -> dict[str, float | None]:
    return {
        "low": bound.low if math.isfinite(bound.low) else None,
        "high": bound.high if math.isfinite(bound.high) else None,
    }
