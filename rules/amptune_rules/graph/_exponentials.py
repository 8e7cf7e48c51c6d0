"""What is known of exponentials: what they are given, and from where they overflow."""

from __future__ import annotations

import math

from amptune.core.arguments import limits_of
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.relations.distances import is_minus_distance
from amptune.core.bounds.relations.logarithms import is_logarithmic
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune_rules.graph._numeric import BATCH_MARGIN, called, of_batch

FP16_LIMIT = math.log(Format.FP16.max)
FP32_LIMIT = math.log(Format.FP32.max)
_EVEN = ("cosh", "sinh", "i0")
"""What grows as an exponential on both sides of zero."""
EXPONENTIALS = ("exp", "expm1", "exp2", *_EVEN)
POWERS = (*EXPONENTIALS, "pow")
LOGARITHMS = frozenset({"log", "log2", "log10", "log1p", "logsumexp"})
_BEYOND = {"cosh": (math.log(2), math.log(2)), "sinh": (math.log(2), math.log(2)), "i0": (3.18, 2.11)}
"""How much further than exp these go in FP32 and FP16: cosh(x) is half of exp(x), i0(x) exp(x) / sqrt(2 pi x)."""


def _place(site: Site) -> int:
    """Which operand is raised."""
    return 1 if site.op == "pow" else 0


def _farthest(site: Site, found: Range) -> float:
    return found.magnitude if site.op in _EVEN else found.high


def is_exponential(site: Site) -> bool:
    """Whether a site is one, and not a power of another kind."""
    return site.op != "pow" or _base(site) > 1


def _base(site: Site) -> float:
    """The literal base of a power, as in ``2 ** x``; 0 where there is none."""
    base = (site.attrs.get("scalars") or {}).get(0)
    return float(base) if isinstance(base, (int, float)) else 0.0


def scale_of(site: Site) -> float:
    """What the input is multiplied by, as an input of exp: the logarithm of the base."""
    return math.log(2.0 if site.op == "exp2" else _base(site)) if site.op in ("exp2", "pow") else 1.0


def limit_of(site: Site, of_exp: float) -> float:
    """The input from which a site overflows, where exp does from ``of_exp``."""
    in_fp32, in_fp16 = _BEYOND.get(site.op, (0.0, 0.0))
    return (of_exp + (in_fp16 if of_exp == FP16_LIMIT else in_fp32)) / scale_of(site)


def input_name(site: Site) -> str:
    """What is raised, for a message."""
    return f"exponent of {_base(site):g}" if site.op == "pow" else f"input of {site.op}"


def given_to(run: Run, site: Site) -> Range:
    """Bounds of what is raised."""
    return run.ranges.operand(site, _place(site))


def may_pass(run: Run, site: Site, limit: float) -> bool:
    """Whether what is raised may come to more than ``limit``, as an input of exp."""
    return _farthest(site, given_to(run, site)) * scale_of(site) > limit


def is_unbounded(context: GraphContext, site: Site) -> bool:
    """Whether neither the ops nor the data keep an exponential from being infinite in FP32."""
    return may_pass(context.runs[0], site, FP32_LIMIT) and reach_of_data(context, site) > FP32_LIMIT


def is_kept_small(context: GraphContext, site: Site) -> bool:
    """Whether what is raised is above zero by rounding alone, or is as large as what was logged; or whether an infinite
    result is cut off, or the logarithm of the rest is taken."""
    ranges, place = context.runs[0].ranges, _place(site)
    if is_minus_distance(ranges, site, place) or is_logarithmic(ranges, site, place):
        return True
    return _is_cut_off(context, site) or _is_rest_logged(context, site)


def reach_of_data(context: GraphContext, site: Site) -> float:
    """How far what is raised goes where it is data, such as labels; infinity for anything else."""
    return BATCH_MARGIN * _farthest(site, of_batch(context, site, _place(site))) * scale_of(site)


def reach_in_words(run: Run, site: Site, signless: str | None) -> str:
    """How far the input may go, for a message."""
    if signless is not None:
        return (
            f"the {input_name(site)} is a product of what has one sign and of {signless}, whose sign no op shows; "
            "where that is positive, nothing bounds it"
        )
    far = _farthest(site, given_to(run, site))
    if math.isinf(far):
        return f"no op bounds the {input_name(site)}"
    return f"the ops bound the {input_name(site)} by {far:.4g} only"


def factor_without_sign(context: GraphContext, site: Site) -> str | None:
    """The factor of which the ops show no sign, where the exponent is a product and the other has one: a density times
    a distance, which the user takes to be positive. ``None`` for any other exponent."""
    run = context.runs[0]
    root = run.ranges.root(site)
    if root is not None and root.op == "neg":
        root = run.ranges.root(root)
    if root is None or root.op != "mul":
        return None
    for side in (0, 1):
        one, other = run.ranges.operand(root, side), run.ranges.operand(root, 1 - side)
        has_sign = one.is_known and math.isinf(one.magnitude) and (one.low >= 0 or one.high <= 0)
        made = run.ranges.root(root, 1 - side)
        if has_sign and (not other.is_known or (made is not None and made.id not in context.weighted)):
            return "data" if made is None else called(made)
    return None


def _is_cut_off(context: GraphContext, site: Site) -> bool:
    """Whether all that reads a result clamps it from above, and no gradient comes back: infinity is the limit then."""
    readers = context.graph.consumers(site.id)
    if not readers or not all(each.op == "clamp" and limits_of(each)[1] < math.inf for each in readers):
        return False
    after = [(each, again) for each in readers for again in context.graph.consumers(each.id)]
    return not context.train or not any(_is_trained_by(context, each, again) for each, again in after)


def _is_trained_by(context: GraphContext, site: Site, reader: Site) -> bool:
    sources = zip(context.runs[0].ranges.sources(reader), reader.inputs, strict=False)
    return any(source == site.id and tensor.requires_grad for source, tensor in sources)


def _is_rest_logged(context: GraphContext, site: Site) -> bool:
    """Whether ``log(-expm1(x))`` or ``log1p(-exp(x))`` is taken, which only x below zero have."""
    readers = context.graph.consumers(site.id)
    after = [again for each in readers for again in context.graph.consumers(each.id)]
    return bool(after) and all(each.op == "neg" for each in readers) and all(each.op in LOGARITHMS for each in after)
