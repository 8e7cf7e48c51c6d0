"""What the steps of measured plans teach: which of them were the GPU's, which the host's, and what either takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from amptune.tune.allocation.encoded import Encoding
from amptune.tune.learning.host import HOST_SCALES, Host, learn_fixed, waited_for_host
from amptune.tune.learning.stepmodel import Feature, Features, Observation, StepModel, fit_model
from amptune.tune.study.trial import Outcome, TrialRecord

NOISE_FLOOR = 0.003
"""Smallest share of a step that counts as a gain: clocks and temperature alone change as much."""
GLOBAL_COST = 0.25
"""What a choice of the whole plan (TF32, layout, loss) may cost, as a share of the step, before it is measured."""
AS_A_PLAN = 0.02
"""How far a recipe may be off what a plan of its formats takes, as a share of its step: as a sum of sites is."""
FAR = 0.15
"""How far the costs of a slow plan may fail to add up, as a share of what it takes beyond the best: it pays for casts
and casts back that no plan near the best has, so what it teaches about those counts less."""


def noise_of(measured: Sequence[TrialRecord], step_ms: float) -> float:
    """Standard deviation of a measured step."""
    spreads = [r.outcome.spread_ms for r in measured if r.outcome.step_ms]
    return max(statistics.median(spreads) if spreads else 0.0, NOISE_FLOOR * step_ms)


def learn_times(
    encoding: Encoding, measured: Sequence[TrialRecord], stock: Sequence[Outcome], base_ms: float, step_ms: float
) -> tuple[StepModel, Host | None]:
    """What a step takes on the GPU beyond the cost model's sum, and what it takes on the host, where that is known.

    Args:
        encoding: the rows of the space.
        measured: plans with a step, and recipes that count as such.
        stock: trials of the stock recipes.
        base_ms: what the GPU takes beside the sites that the cost model adds up.
        step_ms: the fastest step.
    """
    costs: dict[Feature, float] = encoding.model.costs()
    for name, values in encoding.model.space.choices().items():
        if name.startswith(":"):
            costs |= {(name, value): GLOBAL_COST * step_ms for value in values}
    features = Features(encoding)
    rows = encoding.rows([record.point for record in measured])

    def observed(index: int, ms: float, predicted_ms: float, noise_ms: float = 0.0) -> Observation:
        record = measured[index]
        off = FAR * max(0.0, record.outcome.ranked_ms - step_ms) + AS_A_PLAN * ms * (record.outcome.recipe is not None)
        return Observation(record.point, ms - predicted_ms, math.hypot(noise_of([record], ms), off, noise_ms))

    casts = encoding.on_the_host.milliseconds(rows)
    plans = [(record.outcome, float(ms)) for record, ms in zip(measured, casts, strict=True)]
    # Without a price of launches nothing is known of how plans differ on the host: not under torch.compile.
    fixed = learn_fixed(stock, plans) if encoding.model.table.launching else None
    waited = {i for i, record in enumerate(measured) if fixed and waited_for_host(record.outcome)}
    host = None
    if fixed is not None:
        medians = [(i, measured[i].outcome) for i in sorted(waited)]
        seen = [observed(i, o.ranked_ms, fixed.ms + float(casts[i]), fixed.noise_of(o)) for i, o in medians]
        noise = noise_of([measured[i] for i in waited], step_ms)
        step = fit_model(features, costs, step_ms, seen, noise, offset=0.0, scales=HOST_SCALES)
        host = Host(encoding.on_the_host, step, fixed.ms)

    summed = base_ms + np.array([encoding.model.predicted(record.point) for record in measured])
    noise = noise_of(measured, step_ms)
    seen = [observed(i, r.outcome.ranked_ms, summed[i]) for i, r in enumerate(measured) if i not in waited]
    step = fit_model(features, costs, step_ms, seen, noise)
    # Steps in which the GPU waited only say that it takes no longer.
    expected = summed + step.corrections(rows)
    longer = [i for i in sorted(waited) if measured[i].outcome.least_ms < expected[i]]
    if longer:
        seen += [observed(i, measured[i].outcome.least_ms, summed[i]) for i in longer]
        step = fit_model(features, costs, step_ms, seen, noise)
    return step, host
