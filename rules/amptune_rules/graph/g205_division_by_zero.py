"""G205: a division by what can be zero."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.distances import distance_of
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.intervals import Range
from amptune.core.operands import input_of
from amptune.core.ops import op_named
from amptune.core.range_rules import reduced_count
from amptune.core.relations import is_positive_sum, reads_back_sum
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import (
    SIGNED_FAMILIES,
    chain,
    eps_before,
    floating_sites,
    gives_zeros,
    is_guarded_after,
    is_settled,
    is_signed_sum,
    is_stored,
    source_dtype,
)


class DivisionByZero(GraphRule):
    """A denominator that can be zero, or whose eps the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each denominator and rounds them as each recipe would. Where an eps was
    written and vanishes, it is a warning; so is a buffer of zeros, a denominator that is worked out from constants and
    is zero somewhere, one that literals keep above zero by less than the format holds, and a normalisation with eps=0.
    Where no eps was written and the denominator is a norm, a sum, a count, an absolute value, the output of a layer or
    a parameter, it is information, and a warning where it is the output of relu or the like, which is zero for half of
    what it reads. Sums of exponentials are above zero, and not reported, nor is a lost eps beside such a sum by
    segment. A squared distance by its three terms has rounding errors of both signs, whatever eps is below them; an
    eps that FP16 holds may still be too small to divide by there: 1 / 1e-5 is over 65504.

    ## Why is this bad
    0 / 0 is NaN, and one NaN in a forward makes every gradient NaN. The usual eps of 1e-8 is zero in FP16, whose
    smallest number is 6e-8. (Under CUDA autocast norm and sum give FP32, so their eps holds.)

    ## Example
    ```python
    y = x / (x.abs().mean(-1, keepdim=True) + 1e-8)
    ```

    ## Use instead
    ```python
    y = x / (x.abs().mean(-1, keepdim=True) + 1e-4)     # or in float32
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Mixed Precision Training (ICLR 2018); torch.finfo.
    """

    code = "G205"
    name = "division-by-zero"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a deviation whose smallest value FP16 does not have", model_file(
            """
            deviation = self.fc(x).clamp(-20, 2).exp()
            return self.fc(x) / deviation  # <- G205
            """, cast=".half()", batch="torch.randn(32, 64).half()")),
        Example("an eps that FP16 cannot hold", model_file(
            """
            h = self.fc(x)
            return h / (h.abs().mean(-1, keepdim=True) + 1e-8)  # <- G205
            """)),
        Example("ranks that start at zero", model_file(
            """
            h = self.fc(x)
            return h / torch.log2(torch.argsort(h, 1).float() + 1)  # <- G205
            """)),
        Example("weights by distances that a 16-bit product makes negative", model_file(
            """
            d = -2 * (x @ self.points.t())
            d += (x**2).sum(-1, keepdim=True)
            d += (self.points**2).sum(-1)
            near = 1.0 / (d.topk(3, largest=False)[0] + 1e-8)  # <- G205
            return self.fc(x) * (near / near.sum(-1, keepdim=True)).amax(-1, keepdim=True)
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('points', torch.rand(100, 64))")),
        Example("an eps over which one is infinite in FP16", model_file(
            """
            p = self.fc(x).sigmoid()
            return torch.log(p.clamp(min=1e-5) / (1 - p).clamp(min=1e-5))  # <- G205
            """)),
        Example("a norm without eps", model_file(
            """
            h = self.fc(x)
            return h / h.norm(dim=-1, keepdim=True)  # <- G205
            """)),
    )  # fmt: skip
    VALID = (
        Example("the softmax of edges, with an eps that FP16 cannot hold", model_file(
            """
            score = self.fc(x)
            top = torch.full((8, 64), -1e4, dtype=x.dtype, device=x.device)
            top = top.scatter_reduce(0, to[:, None].expand(32, 64), score, "amax")
            e = torch.exp(score - top[to])
            total = torch.zeros(8, 64, dtype=x.dtype, device=x.device).index_add_(0, to, e)
            return e / (total[to] + 1e-16)
            """, cast=".half()", takes="x, to", batch="(torch.randn(32, 64).half(), torch.arange(32) // 4)")),
        Example("distances of which conditions say that one is not zero", model_file(
            """
            same = x < 0.5
            left = torch.where(same, 1, (self.fc(x) - 1).abs())
            right = torch.where(same, 1, (self.fc(x) + 1).abs())
            return left / (left + right)
            """)),
        Example("weights by noise levels of the batch, none of them zero", model_file(
            "return self.fc(x) / (t * 0.5)[:, None] ** 2", takes="x, t",
            batch="(torch.randn(32, 64), 0.01 + torch.rand(32))"), options={"evidence": True}),
        Example("norm is FP32 under autocast", model_file(
            """
            h = self.fc(x)
            return h / (h.norm(dim=-1, keepdim=True) + 1e-8)
            """)),
        Example("sums of decays that come from a buffer", model_file(
            """
            steps = torch.arange(600.0, device=x.device)
            ahead = steps[:, None] - steps[None]
            decay = torch.where(ahead < 0, 0.0, torch.exp(ahead * self.rate[:, None, None]))
            return self.fc(x) * (decay / decay.sum(-1, keepdim=True).sqrt()).mean()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('rate', -torch.rand(8))")),
        Example("a quotient that ends where FP16 does not", model_file(
            """
            p = self.fc(x).sigmoid()
            return torch.log(p.clamp(min=1e-4) / (1 - p).clamp(min=1e-4))
            """)),
        Example("an eps that FP16 can hold", model_file(
            """
            h = self.fc(x)
            return h / (h.abs().mean(-1, keepdim=True) + 1e-4)
            """)),
        Example("softmax by hand with the maximum subtracted", model_file(
            """
            h = self.fc(x)
            e = torch.exp(h - h.amax(-1, keepdim=True))
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("states that add up exponentials, as in linear attention", model_file(
            """
            k, v = self.fc(x), x
            top = k[0].clone()
            over, under = torch.zeros_like(top), torch.zeros_like(top)
            for t in range(4):
                new = torch.maximum(top, k[t])
                old, now = torch.exp(top - new), torch.exp(k[t] - new)
                over, under, top = old * over + now * v[t], old * under + now, new
            return over / under
            """)),
        Example("a running variance with an eps", model_file(
            "return self.fc((x - self.mean) / torch.sqrt(self.running + 1e-8))",
            init="self.fc = nn.Linear(64, 64)\nself.register_buffer('mean', torch.zeros(64))\n"
                 "self.register_buffer('running', torch.ones(64))")),
        Example("one plus what is not negative", model_file("return x / (1 + self.fc(x).abs())")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each division."""
        for site in floating_sites(context, "div", "reciprocal"):
            place = 0 if site.op == "reciprocal" else 1
            if zeros := _constant_zeros(context, site, place):
                text = f"the denominator is worked out from constants, and {zeros} of its numbers are zero: x / 0 is "
                yield context.finding(self, site, f"{text}infinite, and 0 / 0 NaN", zeros=zeros)
                continue
            bad = tuple(run for run in context.runs if _touches_zero(run.ranges.operand(site, place)))
            if is_guarded_after(context, site):
                continue
            if (distance := _denominator_of_distance(context, site, place)) is not None:
                yield from self._of_distance(context, site, *distance)
                continue
            if not bad:
                if out := tuple(run for run in context.runs if _leaves_fp16(run, site, place)):
                    yield self._over_eps(context, site, place, out)
                else:
                    yield from self._replaced(context, site, place)
                continue
            eps = eps_before(bad[0], site, place)
            if eps is not None and _is_needless(bad[0], site, place):
                continue
            if eps is not None and not _holds_without(bad[0], site, place):
                rounded = ", ".join(dict.fromkeys(source_dtype(run, site, place) or "float16" for run in bad))
                yield context.finding(
                    self,
                    site,
                    f"the eps of {eps:g} in the denominator rounds to zero in {rounded} (under {recipes_in(bad)}): "
                    "a zero denominator gives NaN or infinity",
                    eps=eps,
                    chain=chain(context, site),
                )
            elif len(bad) == len(context.runs):
                yield from self._unguarded(context, site, bad[0], place)
            elif eps is None:
                yield from self._rounded_away(context, site, place, bad)
        yield from self._without_eps(context)

    def _rounded_away(self, context: GraphContext, site: Site, place: int, bad: tuple[Run, ...]) -> Iterable[Finding]:
        """A denominator that literals keep above zero, by less than a format can hold: ``x / exp(y.clamp(-20, 2))``."""
        kept = next(run for run in context.runs if run not in bad)
        root, low = kept.ranges.root(site, place), kept.ranges.operand(site, place).low
        if root is None or low <= 0 or _is_chosen(kept, root) or is_stored(context, root):
            return
        if root.op in ("sqrt", "pow") and eps_before(kept, root) is not None and not is_signed_sum(kept, root):
            return  # G206 says of the root that its eps is lost
        dtypes = dict.fromkeys(source_dtype(run, site, place) or "float16" for run in bad)
        yield context.finding(
            self,
            site,
            f"the denominator is the result of {root.op}, whose values start at {low:.2g} and round to zero in "
            f"{', '.join(dtypes)} (under {recipes_in(bad)}): divide in float32, or bound it higher",
            low=low,
            chain=chain(context, site),
        )

    def _of_distance(self, context: GraphContext, site: Site, product: Site, eps: float) -> Iterable[Finding]:
        """Squared distances by three terms: where two points are near, their rounding errors are all that is left."""
        runs = tuple(run for run in context.runs if eps < max(_epsilons(run, product), default=0.0))
        if not runs:
            return
        added = f" + {eps:g}" if eps else ""
        in_half = any(dtype in HALF for run in runs for dtype in run.dtypes[product.id].outputs)
        yield context.finding(
            self,
            site,
            f"division by |a|^2 - 2ab + |b|^2{added}, which rounding takes to zero and below for near points (under "
            f"{recipes_in(runs)}): clamp it above zero, and compute the product in float32",
            severity=None if in_half else Severity.INFO,
            chain=chain(context, site),
        )

    def _over_eps(self, context: GraphContext, site: Site, place: int, runs: tuple[Run, ...]) -> Finding:
        """An eps that is kept, and that something is divided by all the same."""
        eps, largest = runs[0].ranges.operand(site, place).low, runs[0].ranges.exact(site).high
        root = runs[0].ranges.root(site, place)
        return context.finding(
            self,
            site,
            f"the eps of {eps:.3g} guards nothing in fp16 (under {recipes_in(runs)}): where the denominator comes down "
            f"to it, the quotient comes up to {largest:.3g}, over 65504; make the eps larger, or divide in float32",
            severity=Severity.INFO if root is not None and root.op == "add" else None,
            eps=eps,
            chain=chain(context, site),
        )

    def _without_eps(self, context: GraphContext) -> Iterable[Finding]:
        """Layers that divide by a norm, and were told to do so without an eps."""
        for site in floating_sites(context, "normalize", "cosine_similarity"):
            if site.attrs.get("eps") == 0:
                yield context.finding(
                    self, site, f"{site.op} with eps=0 divides by the norm as it is: NaN for a vector of zeros"
                )

    def _replaced(self, context: GraphContext, site: Site, place: int) -> Iterable[Finding]:
        """Denominators of both signs: a difference, or what stands for zeros and is lost itself."""
        root = context.runs[0].ranges.root(site, place) if context.runs else None
        if root is None:
            yield from self._of_parameter(context, site, place)
        if root is None or is_settled(context, root):
            return
        lost = next((number for run in context.runs for number in _lost_numbers(run, root)), None)
        if lost is not None:
            runs = tuple(run for run in context.runs if lost in _lost_numbers(run, root))
            yield context.finding(
                self,
                site,
                f"the {lost:g} that stands for zeros in the denominator rounds to zero under {recipes_in(runs)}",
                eps=lost,
                chain=chain(context, site),
            )
        elif (
            (what := _what_may_vanish(context, root))
            and _may_vanish(context.runs[0].ranges.operand(site, place))
            and not _is_off_zero_by_data(context, site, place)
        ):
            yield context.finding(
                self,
                site,
                f"division by {what}: add an eps, or clamp it",
                severity=Severity.INFO,
                chain=chain(context, site),
            )

    def _of_parameter(self, context: GraphContext, site: Site, place: int) -> Iterable[Finding]:
        """Denominators that are a parameter, unless all of its first values lie on one side of zero."""
        name = (site.attrs.get("operand_params") or {}).get(place)
        bounds = context.bounds(context.runs[0]) if context.runs else None
        if name is not None and (bounds is None or bounds.operand(site, place).holds(0.0)):
            yield context.finding(
                self,
                site,
                f"division by the parameter {name}, which can be zero: store its logarithm, or put it through softplus",
                severity=Severity.INFO,
            )

    def _unguarded(self, context: GraphContext, site: Site, run: Run, place: int) -> Iterable[Finding]:
        root, found = run.ranges.root(site, place), run.ranges.operand(site, place)
        position = input_of(site, place)
        if root is not None and (_is_chosen(run, root) or is_stored(context, root)):
            return
        if root is not None and _is_off_zero_in_batch(context, site, place, root):
            return
        if reads_back_sum(run.ranges, site, place):
            return
        if is_positive_sum(run.ranges, root) or (root is not None and _is_root_with_eps(context, root)):
            return
        if root is not None and root.op in ("exp", "exp2") and not math.isfinite(run.ranges.operand(root, 0).high):
            return  # G203 says of such an exponential what else it does below
        if root is None and (position is None or position not in (site.attrs.get("bounds") or {})):
            return
        if found == Range(0.0, 0.0):
            text = "the denominator is a buffer of zeros, as it stands: x / 0 is infinite or NaN until it is written"
            yield context.finding(self, site, text)
            return
        is_lost = root is not None and root.op == "sqrt" and eps_before(run, root) is not None
        if is_lost and root is not None and not is_signed_sum(run, root):
            return  # G206 says so of the root
        what = f"the result of {root.op}" if root else "a count"
        where = "where a format rounds its eps to zero; make it larger" if is_lost else "in every format; add an eps"
        yield context.finding(
            self,
            site,
            f"the denominator is {what}, which can be zero as far as its terms show: "
            f"{_quotient(run, site, place)} {where}",
            severity=None if gives_zeros(run, site, place) else Severity.INFO,
            chain=chain(context, site),
        )


_CHOSEN = ("where", "masked_fill", "dropout", "one_hot", "eq", "ne", "gt", "lt", "ge", "le")
"""Denominators that a condition of the user's makes."""


def _is_chosen(run: Run, root: Site) -> bool:
    """Whether a condition of the user's makes a denominator, or a term that it adds up."""
    terms = [run.ranges.root(root, side) for side in (0, 1)] if root.op == "add" else [root]
    return any(term is not None and term.op in _CHOSEN for term in terms)


def _constant_zeros(context: GraphContext, site: Site, place: int) -> int:
    """How many numbers of a constant denominator are zero; 0 where it is not constant, or is read in part."""
    root = context.runs[0].ranges.root(site, place) if context.runs else None
    position = input_of(site, place)
    if root is None or position is None or (site.attrs.get("views") or {}).get(position, ("", ""))[0]:
        return 0
    return int(root.attrs.get("exact", (0, 0, 0))[2])


def _denominator_of_distance(context: GraphContext, site: Site, place: int) -> tuple[Site, float] | None:
    return distance_of(context.runs[0].ranges, site, place) if context.runs else None


def _is_sum_over_distances(context: GraphContext, root: Site) -> bool:
    terms = context.runs[0].ranges.root(root)
    if terms is None or terms.op not in ("div", "reciprocal"):
        return False
    return _denominator_of_distance(context, terms, 0 if terms.op == "reciprocal" else 1) is not None


def _epsilons(run: Run, product: Site) -> list[float]:
    """How exact a product is, relative to its terms."""
    return [Format.parse(each).epsilon for each in run.dtypes[product.id].outputs if each in ("float32", *HALF)]


def _leaves_fp16(run: Run, site: Site, place: int) -> bool:
    """Whether a quotient of what is bounded leaves FP16 where its denominator comes down to an eps that was written."""
    below, found = run.ranges.operand(site, place), run.ranges.exact(site)
    if "float16" not in run.dtypes[site.id].outputs or not (0 < below.low < 1 and found.is_known):
        return False
    is_over = Format.FP16.max < found.high < math.inf and eps_before(run, site, place) is not None
    return is_over and not _is_beside_sum(run, site, place)


MANY = 32
"""Numbers of which some are off zero, unless what made them gives zeros: their sum does not come down to an eps."""


def _is_beside_sum(run: Run, site: Site, place: int) -> bool:
    """Whether the eps of a denominator stands beside a sum or mean of many numbers."""
    root = run.ranges.root(site, place)
    total = run.ranges.root(root) if root is not None and root.op == "add" else None
    if total is None or total.op not in ("sum", "mean") or reduced_count(total) < MANY:
        return False
    return not gives_zeros(run, total)


def _what_may_vanish(context: GraphContext, root: Site) -> str:
    """What a denominator is, where it is a kind of value that has both signs unless something says otherwise, or adds
    up what the batch has no negative numbers of, as masks."""
    if root.op == "sub":
        return "a difference, which can be zero"
    if op_named(root.op).family in SIGNED_FAMILIES:
        return f"{f'the output of {root.id}' if root.is_module else f'the result of {root.op}'}, which can be zero"
    if root.op not in ("sum", "mean", "prod", "trace"):
        return ""
    if _is_sum_over_distances(context, root):
        return ""  # of weights by distances, whose own division is what breaks
    bounds = context.bounds(context.runs[0])
    if root.op in ("sum", "mean") and bounds is not None and bounds.operand(root, 0).low >= 0:
        return f"a {root.op}, which is zero where all its terms are"
    return f"a {root.op} of what has both signs, which can be zero"


def _is_off_zero_by_data(context: GraphContext, site: Site, place: int) -> bool:
    """Whether a denominator of both signs is off zero with the numbers of the batch: images in [0, 1] less 2."""
    bounds = context.bounds(context.runs[0])
    return bounds is not None and not _may_vanish(bounds.operand(site, place))


def _is_off_zero_in_batch(context: GraphContext, site: Site, place: int, root: Site) -> bool:
    """Whether a denominator is worked out from the batch alone, and is off zero with its numbers, as noise levels."""
    bounds = context.bounds(context.runs[0])
    return bounds is not None and root.id not in context.weighted and bounds.operand(site, place).least > 0


def _quotient(run: Run, site: Site, place: int) -> str:
    """What the division gives where the denominator is zero."""
    above = Range(1.0, 1.0) if place == 0 else run.ranges.operand(site, 0)
    return "0 / 0 is NaN" if not above.is_known or above.holds(0.0) else "x / 0 is infinite"


def _is_root_with_eps(context: GraphContext, root: Site) -> bool:
    """Whether a site is sqrt(x + eps) of an x of which nothing is known: the root says that the user has x above zero,
    as a running variance is, and the eps is there and is kept in every format."""
    return root.op == "sqrt" and all(_keeps_offset(run, run.ranges.root(root)) for run in context.runs)


def _keeps_offset(run: Run, total: Site | None) -> bool:
    if total is None or total.op != "add":
        return False
    numbers = [value for value in (total.attrs.get("scalars") or {}).values() if isinstance(value, (int, float))]
    formats = [Format.parse(dtype) for dtype in run.dtypes[total.id].outputs]
    return any(value > 0 and all(each.round(value) > 0 for each in formats) for value in numbers)


def _lost_numbers(run: Run, root: Site) -> list[float]:
    """Numbers that a where or masked_fill puts in and that the format of its result rounds to zero."""
    if root.op not in ("where", "masked_fill"):
        return []
    formats = [Format.parse(dtype) for dtype in run.dtypes[root.id].outputs if dtype in ("float16", "bfloat16")]
    numbers = [*(root.attrs.get("scalars") or {}).values(), root.attrs.get("value")]
    given = [float(each) for each in numbers if isinstance(each, (int, float)) and each]
    return [number for number in given if any(each.round(number) == 0 for each in formats)]


def _may_vanish(found: Range) -> bool:
    """Whether nothing is known, or zero lies between the two ends of what is."""
    return not found.is_known or found.holds(0.0)


def _touches_zero(found: Range) -> bool:
    """Whether zero is an end of what is known, or lies within what is known on one side."""
    return found.is_known and (found.low == 0 or found.high == 0 or (found.holds(0.0) and _is_one_sided(found)))


def _is_one_sided(found: Range) -> bool:
    return math.isinf(found.low) != math.isinf(found.high)


def _is_needless(run: Run, site: Site, place: int) -> bool:
    """Whether an eps is added to what is above zero without it: sums of exponentials by segment, which terms read."""
    root = run.ranges.root(site, place)
    numbers = (root.attrs.get("scalars") or {}) if root is not None and root.op == "add" else {}
    return root is not None and len(numbers) == 1 and reads_back_sum(run.ranges, root, 1 if 0 in numbers else 0)


def _holds_without(run: Run, site: Site, place: int) -> bool:
    """Whether what the eps is added to has both signs, so that the eps protects nothing in any format."""
    root = run.ranges.root(site, place)
    return root is not None and root.op == "add" and run.ranges.operand(root, 0).low < 0
