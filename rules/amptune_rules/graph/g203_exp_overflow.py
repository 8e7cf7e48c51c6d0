"""G203: an exponential whose input nothing bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from amptune.core.arguments import limits_of
from amptune.core.distances import is_minus_distance
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.intervals import Range
from amptune.core.logarithms import is_logarithmic
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import (
    BATCH_MARGIN,
    called,
    chain,
    floating_sites,
    is_merged,
    of_batch,
    reads_weights_alone,
    runs_in,
    where_in,
)

FP16_LIMIT = math.log(Format.FP16.max)
FP32_LIMIT = math.log(Format.FP32.max)


class ExpOverflow(GraphRule):
    """An exponential in FP16 whose input may pass 11.09, or in any format one that is then summed or logged.

    ## What it does
    Follows the ops and literals that lead to each exp; reports it in FP16 when nothing bounds its input by 11.09, and
    in every format when exp is normalised or logged by hand (softmax, softplus, logsumexp without the maximum
    subtracted), divided by, or raised again, and nothing bounds its input by 88.7. Any other exp without a bound is
    information. Under CUDA autocast exp itself runs in FP32; where a product reads the result in FP16, as it is or
    times a number, it is reported as in FP16.

    ## Why is this bad
    exp(11.1) is infinite in FP16, exp(88.8) in BF16 and FP32. Infinity divided by infinity is NaN.

    ## Example
    ```python
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    ```

    ## Use instead
    ```python
    weights = scores.softmax(-1)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Exposing Numerical Bugs in Deep Learning with Gradient Back-propagation (ESEC/FSE 2021).
    """

    code = "G203"
    name = "exp-overflow"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("features of a kernel without their maximum, for a product in FP16", model_file(
            """
            features = torch.exp(self.fc(x)) / 8  # <- G203
            return features @ features.t()
            """)),
        Example("softmax by hand", model_file(
            """
            e = torch.exp(self.fc(x))  # <- G203
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("the softmax of bags by hand", model_file(
            """
            e = torch.exp(self.fc(x))  # <- G203
            total = torch.zeros(4, 64, dtype=e.dtype, device=x.device).index_add(0, bag, e)
            return e / total[bag].clamp(min=1e-6)
            """, takes="x, bag", batch="(torch.randn(32, 64), torch.arange(32) % 4)")),
        Example("softplus by hand", model_file("return torch.log(1 + torch.exp(self.fc(x)))  # <- G203")),
        Example("exp in a half model", model_file("return torch.exp(self.fc(x))  # <- G203", cast=".half()",
                                                  batch="torch.randn(32, 64).half()")),
    )  # fmt: skip
    VALID = (
        Example("features of a kernel less their maximum", model_file(
            """
            h = self.fc(x)
            features = torch.exp(h - h.amax()) / 8
            return features @ features.t()
            """)),
        Example("a kernel of squared distances by three terms", model_file(
            """
            h = self.fc(x)
            squares = h.pow(2).sum(1)
            return torch.exp(-(squares[:, None] - 2 * h @ h.t() + squares[None, :]) / 8)
            """)),
        Example("maximum subtracted", model_file(
            """
            h = self.fc(x)
            e = torch.exp(h - h.amax(-1, keepdim=True))
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("a bounded input", model_file("return torch.exp(torch.tanh(self.fc(x)))", cast=".half()",
                                              batch="torch.randn(32, 64).half()")),
        Example("labels of the batch as exponents", model_file(
            "gains = torch.pow(2.0, x.abs().floor()) - 1\nreturn self.fc(x) * gains"), options={"evidence": True}),
        Example("exp in a denominator alone", model_file("return 1 / (1 + torch.exp(-self.fc(x).clamp(min=-80)))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each exp: what is harmful in every format first, else the format that overflows."""
        half = dict(context.sites_in_half(*_EXPONENTIALS, "pow"))
        for site in floating_sites(context, *_EXPONENTIALS, "pow"):
            if not context.runs or not _is_exponential(site) or reads_weights_alone(context, site):
                continue
            data = _data(context, site)
            unbounded = _may_pass(context.runs[0], site, FP32_LIMIT) and data > FP32_LIMIT
            if unbounded and is_minus_distance(context.runs[0].ranges, site, 1 if site.op == "pow" else 0):
                continue  # above zero by rounding alone
            if unbounded and is_logarithmic(context.runs[0].ranges, site, 1 if site.op == "pow" else 0):
                continue  # as large as what was logged
            if unbounded and (_is_cut_off(context, site) or _is_rest_logged(context, site)):
                continue
            signless = _without_sign(context, site) if unbounded else None
            harm = _harm(context, site) if unbounded and signless is None else ""
            runs = tuple(run for run in runs_in(half.get(site, ()), site, Format.FP16)
                         if _may_pass(run, site, FP16_LIMIT) and data > FP16_LIMIT)  # fmt: skip
            if harm:
                yield self._harmful(context, site, harm)
            elif runs:
                yield self._in_fp16(context, site, runs)
            elif (
                unbounded
                and not is_merged(context, site)
                and (readers := _cast_down(context, site))
                and signless is None
            ):
                yield self._then_cast(context, site, readers)
            elif unbounded and not is_merged(context, site):
                yield context.finding(
                    self,
                    site,
                    f"{_reach(context.runs[0], site, signless)}: it overflows over {_limit(site, FP32_LIMIT):.2f} in "
                    "every format; clamp it where large inputs can come",
                    severity=Severity.INFO,
                    limit=round(_limit(site, FP32_LIMIT), 2),
                    chain=chain(context, site),
                )

    def _harmful(self, context: GraphContext, site: Site, harm: str) -> Finding:
        return context.finding(
            self,
            site,
            f"{site.op} {harm} and nothing bounds its input: it overflows over {_limit(site, FP32_LIMIT):.1f} in "
            f"every format ({_limit(site, FP16_LIMIT):.2f} in fp16){_instead(site, harm)}",
            limit=round(_limit(site, FP32_LIMIT), 2),
            chain=chain(context, site),
        )

    def _then_cast(self, context: GraphContext, site: Site, readers: Mapping[Run, Site]) -> Finding:
        reader = next(iter(readers.values()))
        return context.finding(
            self,
            site,
            f"nothing bounds the {_input(site)}, and {called(reader)} reads its result in fp16 (under "
            f"{recipes_in(tuple(readers))}): infinity over {_limit(site, FP16_LIMIT):.2f}; subtract the maximum "
            "first, or clamp it",
            limit=round(_limit(site, FP16_LIMIT), 2),
            format="fp16",
            chain=chain(context, site),
        )

    def _in_fp16(self, context: GraphContext, site: Site, runs: tuple[Run, ...]) -> Finding:
        certain = all(_given(run, site).low * _scale(site) > FP16_LIMIT for run in runs)
        return context.finding(
            self,
            site,
            f"{site.op} runs in {where_in(runs, site)} and overflows to infinity for inputs over "
            f"{_limit(site, FP16_LIMIT):.2f}; nothing in the graph bounds its input",
            severity=Severity.ERROR if certain else None,
            limit=round(_limit(site, FP16_LIMIT), 2),
            format="fp16",
            chain=chain(context, site),
        )


_EVEN = ("cosh", "sinh", "i0")
"""What grows as an exponential on both sides of zero."""
_EXPONENTIALS = ("exp", "expm1", "exp2", *_EVEN)
_DIVIDED = "is divided by what is made of exponentials"
_SHIFTED = "plus a number is divided by what is made of exponentials"
_BELOW = "is a denominator"
_LOGGED = "is logged"
_NESTED = "is raised again"
_INSTEAD = {
    _DIVIDED: ", and inf / inf is NaN; use softmax, sigmoid or tanh, or subtract the maximum first",
    _SHIFTED: ", and inf / inf is NaN; clamp its input, or use softplus in its place",
    _BELOW: ", and the gradient of 1 / inf is 0 * inf = NaN; use sigmoid, or clamp the input",
    _LOGGED: ", where the logarithm would be small; use logsumexp, logcumsumexp, softplus or log_softmax",
    _NESTED: "; the exponential of an exponential does from 4.48",
}
_LOGARITHMS = frozenset({"log", "log2", "log10", "log1p", "logsumexp"})
_CARRIES = frozenset(
    {
        *("add", "sub", "mul", "sum", "mean", "neg", "sqrt", "pow", "square", "cumsum", "prod", "matmul", "mm", "bmm"),
        *("einsum", "cat", "stack", "where", "masked_fill", "dropout", "abs", "amax", "max", "index", "gather"),
        *("triu", "tril", "maximum", "scatter_add", "index_add"),
    }
)
"""Ops through which an infinity stays one."""
_STEPS = 8
_EPS = 1e-2


_BEYOND = {"cosh": (math.log(2), math.log(2)), "sinh": (math.log(2), math.log(2)), "i0": (3.18, 2.11)}
"""How much further than exp these go in FP32 and FP16: cosh(x) is half of exp(x), i0(x) exp(x) / sqrt(2 pi x)."""


def _limit(site: Site, of_exp: float) -> float:
    """The input from which a site overflows, where exp does from ``of_exp``."""
    in_fp32, in_fp16 = _BEYOND.get(site.op, (0.0, 0.0))
    return (of_exp + (in_fp16 if of_exp == FP16_LIMIT else in_fp32)) / _scale(site)


def _instead(site: Site, harm: str) -> str:
    if site.op == "i0" and harm == _LOGGED:
        return ": use log(torch.special.i0e(x)) + x"
    return _INSTEAD[harm]


def _is_cut_off(context: GraphContext, site: Site) -> bool:
    """Whether all that reads a result clamps it from above, and no gradient comes back: infinity is the limit then."""
    readers = context.graph.consumers(site.id)
    if not readers or not all(each.op == "clamp" and limits_of(each)[1] < math.inf for each in readers):
        return False
    after = [(each, again) for each in readers for again in context.graph.consumers(each.id)]
    return not context.train or not any(_is_trained_by(context, each, again) for each, again in after)


def _is_rest_logged(context: GraphContext, site: Site) -> bool:
    """Whether ``log(-expm1(x))`` or ``log1p(-exp(x))`` is taken, which only x below zero have."""
    readers = context.graph.consumers(site.id)
    after = [again for each in readers for again in context.graph.consumers(each.id)]
    return bool(after) and all(each.op == "neg" for each in readers) and all(each.op in _LOGARITHMS for each in after)


def _is_trained_by(context: GraphContext, site: Site, reader: Site) -> bool:
    sources = zip(context.runs[0].ranges.sources(reader), reader.inputs, strict=False)
    return any(source == site.id and tensor.requires_grad for source, tensor in sources)


def _cast_down(context: GraphContext, site: Site) -> dict[Run, Site]:
    """The runs in which a product reads the FP32 result in FP16, as it is or times a number, with that product."""
    found: dict[Run, Site] = {}
    for run in context.runs:
        for name in _scaled(context, site):
            for reader in context.graph.consumers(name):
                dtypes, sources = run.dtypes[reader.id], run.ranges.sources(reader)
                casts = zip(sources, dtypes.given, dtypes.inputs, strict=False)
                if (name, "float32", "float16") in casts:
                    found.setdefault(run, reader)
    return found


def _scaled(context: GraphContext, site: Site) -> list[str]:
    """A site and what multiplies it with numbers alone."""
    names = [site.id]
    for name in names:
        names += [
            after.id
            for after in context.graph.consumers(name)
            if after.op in ("mul", "div") and after.attrs.get("scalars") and after.id not in names
        ]
    return names


def _base(site: Site) -> float:
    """The literal base of a power, as in ``2 ** x``; 0 where there is none."""
    base = (site.attrs.get("scalars") or {}).get(0)
    return float(base) if isinstance(base, (int, float)) else 0.0


def _is_exponential(site: Site) -> bool:
    return site.op != "pow" or _base(site) > 1


def _scale(site: Site) -> float:
    return math.log(2.0 if site.op == "exp2" else _base(site)) if site.op in ("exp2", "pow") else 1.0


def _input(site: Site) -> str:
    return f"exponent of {_base(site):g}" if site.op == "pow" else f"input of {site.op}"


def _reach(run: Run, site: Site, signless: str | None) -> str:
    """How far the input may go, for a message."""
    if signless is not None:
        return (
            f"the {_input(site)} is a product of what has one sign and of {signless}, whose sign no op shows; where "
            "that is positive, nothing bounds it"
        )
    found = _given(run, site)
    far = found.magnitude if site.op in _EVEN else found.high
    return (
        f"no op bounds the {_input(site)}" if math.isinf(far) else f"the ops bound the {_input(site)} by {far:.4g} only"
    )


def _given(run: Run, site: Site) -> Range:
    return run.ranges.operand(site, 1 if site.op == "pow" else 0)


def _may_pass(run: Run, site: Site, limit: float) -> bool:
    found = _given(run, site)
    return (found.magnitude if site.op in _EVEN else found.high) * _scale(site) > limit


def _data(context: GraphContext, site: Site) -> float:
    """How far what is raised goes where it is data, such as labels; infinity for anything else."""
    found = of_batch(context, site, 1 if site.op == "pow" else 0)
    far = found.magnitude if site.op in _EVEN else found.high
    return BATCH_MARGIN * far * _scale(site)


def _without_sign(context: GraphContext, site: Site) -> str | None:
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


def _harm(context: GraphContext, site: Site) -> str:
    """What an infinite result leads to, beyond being infinite; empty where there is no more to it."""
    reached = _reached(context, site)
    for after in reached:
        for consumer in context.graph.consumers(after):
            if consumer.op in _LOGARITHMS:
                return _LOGGED
            if consumer.op in _EXPONENTIALS and (consumer.id != site.id or site.calls > 1):
                return _NESTED
            if consumer.op == "reciprocal" and context.train:
                return _BELOW
            if consumer.op == "div" and (sides := _sides(context, consumer, reached))[1]:
                if sides[0]:
                    return _SHIFTED if _has_number_added(context, consumer, reached) else _DIVIDED
                if context.train:
                    return _BELOW
    return ""


def _reached(context: GraphContext, site: Site) -> Mapping[str, None]:
    """Sites that an infinity in ``site`` reaches as an infinity, the nearest first."""
    reached, fresh = {site.id: None}, [site.id]
    for _ in range(_STEPS):
        fresh = [
            consumer.id
            for name in fresh
            for consumer in context.graph.consumers(name)
            if _carries(consumer) and consumer.id not in reached
        ]
        reached.update(dict.fromkeys(fresh))
    return reached


def _carries(site: Site) -> bool:
    """Whether an infinity that a site reads stays one: also through a clamp that has no upper limit."""
    return site.op in _CARRIES or (site.op == "clamp" and limits_of(site)[1] == math.inf)


def _has_number_added(context: GraphContext, site: Site, reached: Mapping[str, None]) -> bool:
    """Whether what is divided is exponentials and a literal, as in ``exp(x) + 1``: no softmax, whose exponentials may
    all be divided by one. An eps is no such number."""
    ranges = context.runs[0].ranges
    current = ranges.root(site, 0)
    for _ in range(_STEPS):
        if current is None:
            return False
        numbers = (current.attrs.get("scalars") or {}).values() if current.op == "add" else ()
        if any(isinstance(number, (int, float)) and abs(number) > _EPS for number in numbers):
            return True
        roots = [ranges.root(current, place) for place in (0, 1)]
        current = next((root for root in roots if root is not None and root.id in reached), None)
    return False


def _sides(context: GraphContext, site: Site, reached: Mapping[str, None]) -> list[bool]:
    """Whether numerator and denominator of a division are infinite."""
    roots = [context.runs[0].ranges.root(site, place) for place in (0, 1)]
    return [root is not None and root.id in reached for root in roots]
