"""G205: a division by what can be zero."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.intervals import Range
from amptune.core.operands import input_of
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._denominators import (
    buffer_with_zeros,
    constant_zeros,
    denominator_of_distance,
    epsilons,
    fades,
    holds_without,
    is_chosen,
    is_kept_off_zero,
    is_needless,
    is_off_zero_by_data,
    leaves_fp16,
    lost_beside,
    lost_numbers,
    may_vanish,
    quotient,
    touches_zero,
    what_may_vanish,
)
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._infinities import zero_times_infinity
from amptune_rules.graph._numeric import (
    chain,
    eps_before,
    floating_sites,
    gives_zeros,
    is_compared_alone,
    is_guarded_after,
    is_settled,
    is_signed_sum,
    is_stored,
    source_dtype,
)
from amptune_rules.graph._roots import normalises
from amptune_rules.graph._spectra import spectrum_behind

_FADES_AT = 103.97
"""Where exp comes to zero in FP32: half of its smallest number."""


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
    eps that FP16 holds may still be too small to divide by there: 1 / 1e-5 is over 65504. Told too is what is NaN as
    0 / 0 is: rows of a softmax that a mask closes, and a mask that is multiplied with infinity.

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
            if zeros := constant_zeros(context, site, place):
                text = f"the denominator is worked out from constants, and {zeros} of its numbers are zero: x / 0 is "
                yield context.finding(self, site, f"{text}infinite, and 0 / 0 NaN", zeros=zeros)
                continue
            bad = tuple(run for run in context.runs if touches_zero(run.ranges.operand(site, place)))
            if is_guarded_after(context, site) or is_compared_alone(context, site):
                continue
            if (distance := denominator_of_distance(context, site, place)) is not None:
                yield from self._of_distance(context, site, *distance)
                continue
            if not bad:
                if out := tuple(run for run in context.runs if leaves_fp16(run, site, place)):
                    yield self._over_eps(context, site, place, out)
                else:
                    yield from self._replaced(context, site, place)
                continue
            eps = eps_before(bad[0], site, place)
            if eps is not None and is_needless(bad[0], site, place):
                continue
            if eps is not None and not holds_without(bad[0], site, place):
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
        yield from self._closed(context)
        yield from zero_times_infinity(self, context)

    def _rounded_away(self, context: GraphContext, site: Site, place: int, bad: tuple[Run, ...]) -> Iterable[Finding]:
        """A denominator that literals keep above zero, by less than a format can hold: ``x / exp(y.clamp(-20, 2))``."""
        kept = next(run for run in context.runs if run not in bad)
        root, low = kept.ranges.root(site, place), kept.ranges.operand(site, place).low
        if root is None or low <= 0 or is_chosen(kept, root) or is_stored(context, root):
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
        runs = tuple(run for run in context.runs if eps < max(epsilons(run, product), default=0.0))
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

    def _closed(self, context: GraphContext) -> Iterable[Finding]:
        """Softmaxes of rows that the batch's own mask closes as a whole."""
        for site in context.graph:
            if (rows := site.attrs.get("closed_rows")) and not is_guarded_after(context, site):
                yield context.finding(
                    self,
                    site,
                    f"the mask of make_batch() closes {rows} row{'s' * (rows > 1)} of this softmax as a whole: all of "
                    "them -inf, so that it is 0 / 0, NaN in every format; leave a place open, or fill with "
                    "torch.finfo(x.dtype).min",
                    rows=rows,
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
            if (site.attrs.get("as_stored") or {}).get(input_of(site, place)) == (0.0, 0.0):
                yield context.finding(
                    self,
                    site,
                    "the denominator is a buffer of zeros in the first step, as it is read before it is written: "
                    f"{quotient(context.runs[0], site, place).rstrip(',')}",
                )
                return
            yield from self._of_parameter(context, site, place)
        if root is None or is_settled(context, root):
            return
        if (eps_and_runs := lost_beside(context, root))[1]:
            eps, runs = eps_and_runs
            yield context.finding(
                self,
                site,
                f"the eps of {eps:g} in the denominator rounds to zero under {recipes_in(runs)}: it guards nothing "
                "where what it is added to is zero; add it in float32, or make it larger",
                severity=Severity.INFO,
                eps=eps,
                chain=chain(context, site),
            )
            return
        lost = next((number for run in context.runs for number in lost_numbers(run, root)), None)
        if lost is not None:
            runs = tuple(run for run in context.runs if lost in lost_numbers(run, root))
            yield context.finding(
                self,
                site,
                f"the {lost:g} that stands for zeros in the denominator rounds to zero under {recipes_in(runs)}",
                eps=lost,
                chain=chain(context, site),
            )
        elif what := spectrum_behind(context.runs[0], site, place):
            yield context.finding(
                self,
                site,
                f"division by {what}",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
        elif (
            (what := what_may_vanish(context, root))
            and may_vanish(context.runs[0].ranges.operand(site, place))
            and not is_off_zero_by_data(context, site, place)
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
        if root is not None and fades(run, root):
            yield context.finding(
                self,
                site,
                "the denominator is a sum of exponentials of negative distances, which are all zero for what is far "
                f"from everything (below exp({-_FADES_AT:g}) in float32): 0 / 0 is NaN; use softmax over the negative "
                "distances",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
            return
        if is_kept_off_zero(context, run, site, place):
            return
        if found == Range(0.0, 0.0):
            text = "the denominator is a buffer of zeros, as it stands: x / 0 is infinite or NaN until it is written"
            yield context.finding(self, site, text)
            return
        if name := buffer_with_zeros(context, run, root):
            text = f"the denominator is picked from the buffer {name}, some of whose numbers are zero: "
            yield context.finding(self, site, f"{text}{quotient(run, site, place)} there", chain=chain(context, site))
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
            f"{quotient(run, site, place)} {where}",
            severity=None if gives_zeros(run, site, place) else Severity.INFO,
            chain=chain(context, site),
            **({"root": root.site_id} if root is not None and normalises(run, site, root) else {}),
        )
