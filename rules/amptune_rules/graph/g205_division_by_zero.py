"""G205: a division by what can be zero."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._denominators import (
    denominator_of_distance,
    holds_without,
    is_needless,
    leaves_fp16,
    touches_zero,
)
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import eps_before, floating_sites, is_compared_alone, is_guarded_after
from amptune_rules.graph.causes import denominator_eps, zero_denominators
from amptune_rules.graph.causes.backward_divisions import backward_divisions
from amptune_rules.graph.causes.batch_zeros import zero_denominator
from amptune_rules.graph.causes.closed_rows import closed_rows
from amptune_rules.graph.causes.infinities import zero_times_infinity
from amptune_rules.graph.causes.lone_deviations import lone_deviations
from amptune_rules.graph.causes.singular_matrices import singular_matrices


class DivisionByZero(GraphRule):
    """A denominator that can be zero, or whose eps the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each denominator and rounds them as each recipe would. Where an eps was
    written and vanishes, it is a warning; so is a buffer of zeros, a denominator that is worked out from constants
    and is zero somewhere, one that literals keep above zero by less than the format holds, and a normalisation with
    eps=0. Where no eps was written and the denominator is a norm, a sum, a count, an absolute value, the output of a
    layer or a parameter, it is information, and a warning where it is the output of relu or the like, which is zero
    for half of what it reads. Sums of exponentials are above zero, and not reported, nor is a lost eps beside such a
    sum by segment. A squared distance by its three terms has rounding errors of both signs, whatever eps is below
    them; an eps that FP16 holds may still be too small to divide by there: 1 / 1e-5 is over 65504. Told too is what
    is NaN as 0 / 0 is: rows of a softmax that a mask closes, a mask that is multiplied with infinity, and the
    unbiased variance of a single number; and the inverse of a product of a tensor with itself that is singular by its
    shape. The backward of a custom autograd
    function is run once on fakes: what it divides by is information.

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
        Example("noise levels of steps, the first of which is zero", model_file(
            "return self.fc(x) / self.sigma[t][:, None]  # <- G205", takes="x, t",
            init="self.fc = nn.Linear(64, 64)\nself.register_buffer('sigma', torch.linspace(0, 1, 100))",
            batch="(torch.randn(32, 64), torch.arange(32))"), options={"evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("noise levels of steps, none of which is zero", model_file(
            "return self.fc(x) / self.sigma[t][:, None]", takes="x, t",
            init="self.fc = nn.Linear(64, 64)\nself.register_buffer('sigma', torch.linspace(0.01, 1, 100))",
            batch="(torch.randn(32, 64), torch.arange(32))"), options={"evidence": True}),
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
            if (found := zero_denominators.of_constants(self, context, site, place)) is not None:
                yield found
            elif not (is_guarded_after(context, site) or is_compared_alone(context, site)):
                known = zero_denominator(self, context, site, place)
                yield from [known] if known is not None else self._division(context, site, place)
        yield from zero_denominators.without_eps(self, context)
        yield from closed_rows(self, context)
        yield from zero_times_infinity(self, context)
        yield from lone_deviations(self, context)
        yield from singular_matrices(self, context, "inverse", "solve")
        yield from backward_divisions(self, context)

    def _division(self, context: GraphContext, site: Site, place: int) -> Iterable[Finding]:
        if (distance := denominator_of_distance(context, site, place)) is not None:
            yield from zero_denominators.of_distance(self, context, site, *distance)
            return
        bad = tuple(run for run in context.runs if touches_zero(run.ranges.operand(site, place)))
        if not bad:
            if out := tuple(run for run in context.runs if leaves_fp16(run, site, place)):
                yield denominator_eps.over_eps(self, context, site, place, out)
            else:
                yield from zero_denominators.of_both_signs(self, context, site, place)
            return
        eps = eps_before(bad[0], site, place)
        if eps is not None and is_needless(bad[0], site, place):
            return
        if eps is not None and not holds_without(bad[0], site, place):
            yield denominator_eps.rounded_eps(self, context, site, place, eps, bad)
        elif len(bad) == len(context.runs):
            yield from zero_denominators.unguarded(self, context, site, place)
        elif eps is None:
            yield from denominator_eps.rounded_away(self, context, site, place, bad)
