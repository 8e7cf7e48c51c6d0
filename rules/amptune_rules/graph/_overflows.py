"""What FP16 cannot hold, as the rule about its overflows asks: literals, casts, factors, and bounds of results."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator

from amptune.core.bounds.intervals import Range
from amptune.core.formats import Format
from amptune.core.graph import OUTPUT, Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.observed import Stat
from amptune.core.operands import COPIES_ONE, input_of
from amptune.core.ops import Family, op_named
from amptune_rules.graph._numeric import delivering, is_settled

FACTORS = ("mul", "div")
LIMIT = Format.FP16.max
_LIMITS = frozenset({Format.FP32.max, Format.BF16.max})


def run_in_fp16(context: GraphContext) -> Run | None:
    """The first run whose 16-bit format is FP16."""
    return next((run for run in context.runs if run.recipe.half is Format.FP16), None)


def delivering_fp16(context: GraphContext) -> Iterator[tuple[Site, tuple[Run, ...]]]:
    """Sites whose result is rounded to FP16 and is not the same in every run, with the runs in which it is."""
    for site in context.graph:
        if (runs := delivering(context, site, Format.FP16)) and not is_settled(context, site):
            yield site, runs


def seen_outside(context: GraphContext) -> dict[str, Stat]:
    """Site -> values that a recorded step showed, for those that FP16 would not hold."""
    observed = context.evidence.observed
    return {
        site.id: seen
        for site in context.graph
        if observed is not None
        and (seen := observed.forward.get(site.id)) is not None
        and seen.overflows(Format.FP16)
        and delivering(context, site, Format.FP16)
        and not is_settled(context, site)
    }


def reached(context: GraphContext, name: str, among: Container[str]) -> set[str]:
    """A site and what it reaches through others of the same kind."""
    found, fresh = {name}, [name]
    while fresh:
        after = [site.id for each in fresh for site in context.graph.consumers(each)]
        fresh = [each for each in dict.fromkeys(after) if each in among and each not in found]
        found.update(fresh)
    return found


def may_be_outside(found: Range) -> bool:
    """Whether a bound that is known reaches over 65504."""
    return bool(found.is_known and math.isfinite(found.magnitude) and found.magnitude > LIMIT)


def lies_outside(found: Range) -> bool:
    """Whether all of a bound lies over it."""
    return bool(LIMIT < found.low < math.inf or -math.inf < found.high < -LIMIT)


def is_filled_outside(found: Range) -> bool:
    """Whether a bound is one number that FP16 cannot hold, and that no ``torch.finfo`` of another dtype gave."""
    return found.low == found.high and may_be_outside(found) and found.magnitude not in _LIMITS


def literals(site: Site) -> list[float]:
    """Numbers that the call is given, but for limits of its own dtype."""
    named = [site.attrs.get(name) for name in ("value", "fill_value", "min", "max", "min_val", "max_val")]
    found = [*(site.attrs.get("scalars") or {}).values(), *named]
    numbers = [float(value) for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return [value for value in numbers if not _follows_dtype(site, value)]


def written(site: Site) -> list[float]:
    """Numbers that an assignment to a part of a tensor puts there (``x[mask] = -1e9``), but for limits of its dtype."""
    _, numbers = site.attrs.get("puts") or ((), ())
    return [number for number in numbers if not _follows_dtype(site, number)]


def _follows_dtype(site: Site, value: float) -> bool:
    """Whether a number is a limit that torch.finfo(x.dtype) gave, which is another one in another dtype."""
    return abs(value) in _LIMITS and not site.attrs.get("fp32_limit")


def number_outside(run: Run, site: Site) -> float | None:
    """A literal, constant or buffer that the op puts into its FP16 result and that FP16 cannot hold."""
    if site.op in FACTORS:
        return None
    stored = [run.ranges.arriving(site, place) for place in site.attrs.get("bounds") or {}]
    ends = [end for found in stored for end in (found.low, found.high) if abs(end) not in _LIMITS]
    return next((value for value in [*literals(site), *ends] if LIMIT < abs(value) < float("inf")), None)


def lost_in_cast(run: Run, site: Site, index: int) -> Iterable[float]:
    """Literals behind an operand that its cast to FP16 makes infinite."""
    dtypes, position = run.dtypes[site.id], input_of(site, index)
    root = run.ranges.root(site, index)
    if root is None or position is None or dtypes.inputs[position] != "float16" or site.op in COPIES_ONE:
        return
    if "float32" in run.dtypes[root.id].outputs and run.ranges[root.id].magnitude > LIMIT:
        yield from (number for number in _enlarging(run, root) if LIMIT < abs(number) < math.inf)


def _enlarging(run: Run, site: Site) -> list[float]:
    """Literals that make what a site gives large: no divisor, no end of a clamp that numbers may keep away from, and no
    origin that is taken off data of which nothing is known, as of dates."""
    found = run.ranges[site.id]
    if site.op == "div":
        return [float(value) for place, value in (site.attrs.get("scalars") or {}).items() if place == 0]
    if site.op == "clamp":
        return literals(site) if found.low > LIMIT or found.high < -LIMIT else []
    return [] if site.op in ("add", "sub") and math.isinf(found.magnitude) else literals(site)


def infinite_factor(run: Run, site: Site) -> float | None:
    """The largest number of a constant factor of a product that comes in FP16, where it is too large for it; of a
    quotient, of its numerator."""
    for side in (0, 1) if site.op == "mul" else (0,):
        position, made = input_of(site, side), run.ranges.root(site, side)
        if position is None or run.dtypes[site.id].given[position] != "float16":
            continue
        is_made = made is not None and run.ranges.is_constant(made)
        found = run.ranges.exact(made) if made is not None and is_made else run.ranges.arriving(site, position)
        if not is_made and position not in (site.attrs.get("bounds") or {}):
            continue
        if made is not None and made.op in _SQUARES:
            continue  # G214 says of the square that it overflows
        far = found.high if found.high >= -found.low else found.low
        if LIMIT < abs(far) < math.inf and abs(far) not in _LIMITS:
            return far
    return None


_SQUARES = ("mul", "square", "pow")


ORDINARY = 100.0
"""Numbers that a layer without a norm behind it gives once it is trained."""


def factor_limit(runs: tuple[Run, ...], site: Site) -> float | None:
    """From which |x| a product with a literal passes 65504, where nothing bounds x by it and that is under 1, or under
    100 for what a layer gives and is divided by the literal, as by a temperature."""
    scalars = site.attrs.get("scalars") or {}
    place = next(iter(scalars), None)
    if site.op not in FACTORS or place is None or not scalars[place] or (site.op == "div" and place == 0):
        return None
    if _follows_dtype(site, float(scalars[place])):
        return None
    factor = abs(float(scalars[place])) if site.op == "mul" else 1 / abs(float(scalars[place]))
    limit = LIMIT / factor
    made = runs[0].ranges.root(site, 1 - place)
    is_given = site.op == "div" and made is not None and op_named(made.op).family in (Family.GEMM, Family.CONV)
    is_near = limit < (ORDINARY if is_given else 1)
    return limit if is_near and all(run.ranges.operand(site, 1 - place).magnitude > limit for run in runs) else None


_SATURATING = frozenset({"sigmoid", "hardsigmoid", "tanh", "hardtanh", "relu6", "erf", "atan"})


def is_saturated(context: GraphContext, site: Site) -> bool:
    """Whether all that reads a result takes infinity for a large number, and gives a number: a gate with a low
    temperature."""
    readers = context.graph.consumers(site.id)
    is_read_alone = OUTPUT not in context.graph.graph.successors(site.id)
    return is_read_alone and bool(readers) and all(each.op in _SATURATING for each in readers)


def is_outside(run: Run, site: Site) -> bool:
    """Whether the bound was finite before it was rounded to FP16 and is not any more."""
    return lies_outside(run.ranges.exact(site))


_GROWS = COPIES_ONE | {"stft", "fft", "square", "pow", "mul", "abs", "sum", "norm", "linalg_vector_norm", "pad"}
_STEPS = 8


def only_grows(context: GraphContext, site: Site, depth: int = 0) -> bool:
    """Whether a site is powers, spectra and sums of numbers of the batch, of which a bound is not far off what comes:
    differences and quotients have bounds that nothing reaches."""
    bounds = context.bounds(context.runs[0])
    if bounds is None or depth > _STEPS:
        return False
    is_sum = site.op == "add" and all(bounds.operand(site, side).low >= 0 for side in (0, 1))
    makers = [context.graph[source] for source in bounds.sources(site) if source in context.graph]
    if not (is_sum or site.op in _GROWS):
        return False
    return all(is_settled(context, made) or only_grows(context, made, depth + 1) for made in makers)
