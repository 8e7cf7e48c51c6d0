"""What a step takes beside the sites that the cost model adds up: the optimizer, and what has no price.

The measured FP32 step minus the sum of its sites says it badly: a percent of a sum of 300 ms is more than the whole
rest of a 40 ms plan, and layers that run alone, on a cooler chip, are faster than in a step. So it is weighed against
the TF32 step, whose sum is smaller, and against the optimizer's step, which is measured by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from amptune.core.choice import Choice
from amptune.core.formats import Format
from amptune.tune.allocation.costmodel import TF32, CostModel

SUM_ERROR = 0.02
"""How far the measured sites may be off together, as a share of their sum: all alike, by clocks and temperature."""
UNPRICED = 0.03
"""What a step may hold that has no price, as a share of the fastest stock step."""

AUTOCAST = {"autocast-bf16": Format.BF16, "autocast-fp16": Format.FP16}


def point_recipes(model: CostModel) -> dict[str, str]:
    """Recipes that are points of the space -> the flag of TF32, which they differ in; the faster one is the first."""
    return {"tf32": "on", "fp32": "off"} if model.space.tf32 else {"fp32": "off"}


def is_known(model: CostModel, stock: Mapping[str, float], *, compiled: bool = False) -> bool:
    """Whether the steps of these stock recipes say what a step takes beside its sites."""
    is_point = not stock.keys().isdisjoint(point_recipes(model))
    return is_point or (compiled and bool(_of_autocast(model, stock)))


def _of_autocast(model: CostModel, stock: Mapping[str, float]) -> list[tuple[float, float]]:
    points = [(recipe, model.space.uniform(Choice(low))) for recipe, low in AUTOCAST.items() if recipe in stock]
    totals = [(stock[recipe], model.predicted(point)) for recipe, point in points]
    return [(ms - total, SUM_ERROR * total) for ms, total in totals if math.isfinite(total)]


def base_ms(model: CostModel, stock: Mapping[str, float], *, compiled: bool = False) -> float:
    """Milliseconds of a step beside its sites, by the steps of the stock recipes, for which ``is_known`` must hold.

    The recipes ``fp32`` and ``tf32`` are points of the space. In eager mode autocast is none, with its casts around
    each call: on an H200 those of GPT-2, BERT and Llama take 7 to 21 ms beyond what the sites and casts of plans leave,
    and recorded searches that are replayed with them predict the first plan 13 to 45 % worse. The compiler fuses these
    casts, so there it is the plan of one format, and the best evidence.
    """
    evidence = _of_autocast(model, stock) if compiled else []
    for recipe, flag in point_recipes(model).items():
        if recipe in stock:
            total = model.predicted(model.space.point({TF32: flag}))
            evidence.append((stock[recipe] - total, SUM_ERROR * total))
    if model.table.update is not None:
        evidence.append((model.table.update, UNPRICED * min(stock.values())))
    weights = [1 / max(spread, 1e-9) ** 2 for _, spread in evidence]
    return sum(weight * ms for weight, (ms, _) in zip(weights, evidence, strict=True)) / sum(weights)
