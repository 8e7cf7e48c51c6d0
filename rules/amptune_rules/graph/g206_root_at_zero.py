"""G206: a square root where its argument can be zero."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.ops import Family, op_named
from amptune.core.pairs import is_between_all_pairs
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import (
    chain,
    eps_before,
    floating_sites,
    gives_zeros,
    is_guarded_after,
    is_signed,
    is_signed_sum,
    lost_eps,
    of_batch,
    reads_weights_alone,
)
from amptune_rules.graph._roots import (
    cancels,
    is_fractional,
    is_of_difference,
    is_of_distance,
    is_root,
    is_undone,
    may_be_negative,
    named,
    normalised_by,
    root_exponent,
    runs_below_zero,
    touches_zero,
)
from amptune_rules.graph._spectra import is_loaded, spectrum_behind
from amptune_rules.graph.causes.batch_zeros import closing_factor, zeros_of_batch
from amptune_rules.graph.causes.singular_matrices import singular_matrices


class RootAtZero(GraphRule):
    """A sqrt, rsqrt or fractional power of what can be zero or less, or whose eps the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each sqrt, rsqrt and power below 1, rounded as each recipe would, and to
    powers such as 1.5, which are NaN below zero. A variance as E[x^2] - E[x]^2 is rounded below zero, and below an eps
    that is small against the rounding. The root of another difference is information where nothing says that it stays
    above zero. Norm layers with eps=0 are reported too, and cholesky, a root as well, of a product of a tensor with
    itself that is singular by its shape.

    ## Why is this bad
    The gradient of sqrt at zero is infinite, and rsqrt(0) is infinite itself; times a zero gradient that is NaN. An
    eps under 3e-8 is zero in FP16.

    ## Example
    ```python
    distance = torch.sqrt(((a - b) ** 2).mean(-1) + 1e-8)
    ```

    ## Use instead
    ```python
    distance = torch.sqrt(((a - b).float() ** 2).mean(-1) + 1e-8)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.autograd notes on sqrt; Exposing Numerical Bugs in Deep Learning (ESEC/FSE 2021), 10 defects of this kind.
    """

    code = "G206"
    name = "root-at-zero"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("an eps that FP16 cannot hold", model_file(
            """
            h = self.fc(x)
            return torch.sqrt((h * h).mean(-1) + 1e-8)  # <- G206
            """)),
        Example("no eps", model_file(
            """
            h = self.fc(x)
            return torch.sqrt((h * h).sum(-1))  # <- G206
            """)),
        Example("a variance by two means, whose eps is below their rounding", model_file(
            """
            h = self.fc(x)
            mean = h.mean(-1, keepdim=True)
            var = (h * h).mean(-1, keepdim=True) - mean * mean
            return (h - mean) / torch.sqrt(var + 1e-5)  # <- G206
            """)),
        Example("a difference of two means", model_file(
            """
            k = torch.exp(self.fc(x))
            return torch.sqrt(k[:4].mean() + k[4:].mean() - 2 * k.mean())  # <- G206
            """)),
        Example("an eps that FP16 cannot hold, added to a smoothed energy", model_file(
            "return x / (1e-12 + self.fc(x * x)) ** self.alpha  # <- G206",
            init="self.fc = nn.Linear(64, 64)\nself.alpha = nn.Parameter(torch.full((64,), 0.96))")),
        Example("an inverse root of relu", model_file(
            "return torch.rsqrt(F.relu(self.fc(x)))  # <- G206")),
        Example("a distance by its three terms", model_file(
            """
            h = self.fc(x)
            squares = h.pow(2).sum(1)
            return torch.sqrt(squares[:, None] - 2 * h @ h.t() + squares[None, :])  # <- G206
            """)),
        Example("the nearest of distances by three terms", model_file(
            """
            h = self.fc(x)
            squares = (h * h).sum(-1)[:, None] - 2 * h @ x.t() + (x * x).sum(-1)[None]
            return squares.min(1).values.sqrt()  # <- G206
            """)),
    )  # fmt: skip
    VALID = (
        Example("a root of relu, which lets no gradient through at zero", model_file(
            "return torch.sqrt(F.relu(self.fc(x)))")),
        Example("a difference that its terms keep above zero", model_file(
            "return torch.sqrt(2 - torch.tanh(self.fc(x)))")),
        Example("a distance by its three terms, clamped", model_file(
            """
            h = self.fc(x)
            squares = h.pow(2).sum(1)
            return torch.sqrt((squares[:, None] - 2 * h @ h.t() + squares[None, :]).clamp_min(1e-6))
            """)),
        Example("eps added in FP32", model_file(
            """
            h = self.fc(x).float()
            return torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-8) * h
            """)),
        Example("an eps that FP16 can hold", model_file(
            """
            h = self.fc(x)
            return torch.sqrt((h * h).mean(-1) + 1e-5)
            """)),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each root."""
        if not context.runs:
            return
        for site in floating_sites(context, "sqrt", "rsqrt", "pow"):
            if is_root(site) and not reads_weights_alone(context, site):
                yield from self._judged(context, site)
            elif site.op == "pow" and is_fractional(site) and may_be_negative(context.runs[0], site):
                yield context.finding(
                    self,
                    site,
                    f"{named(site)} of what can be negative, which is NaN there",
                    chain=chain(context, site),
                )
        yield from self._norms(context)
        yield from singular_matrices(self, context, "cholesky")

    def _norms(self, context: GraphContext) -> Iterable[Finding]:
        """Norm layers whose eps was set to zero: they divide by the root of a variance."""
        for site in context.graph:
            if op_named(site.op).family is Family.NORM and site.attrs.get("eps") == 0:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} with eps=0 divides by a deviation: NaN where all inputs are equal",
                )

    def _judged(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """The gravest of what is to be said of a root."""
        bad = tuple(run for run in context.runs if touches_zero(run.ranges.operand(site, 0)))
        found = (
            self._rounded(context, site, bad)
            or self._of_small_difference(context, site)
            or self._zero_in_batch(context, site)
            or self._at_zero(context, site, bad)
            or self._below_zero(context, site)
        )
        if found is not None:
            yield found
        else:
            yield from self._lost(context, site)

    def _rounded(self, context: GraphContext, site: Site, bad: tuple[Run, ...]) -> Finding | None:
        """An eps that a format rounds to zero where the root needs it."""
        eps = eps_before(context.runs[0], site)
        if not bad or eps is None or not _breaks(context, site) or is_signed_sum(context.runs[0], site):
            return None
        return context.finding(
            self,
            site,
            f"the eps of {eps:g} under the root rounds to zero under {recipes_in(bad)}: at zero the gradient of "
            "sqrt, and rsqrt itself, is infinite",
            eps=eps,
            chain=chain(context, site),
        )

    def _zero_in_batch(self, context: GraphContext, site: Site) -> Finding | None:
        """What is zero with the batch, whatever the weights are, or where a relu that is a factor of it closes."""
        exponent = root_exponent(site) or 0.0
        zeros = zeros_of_batch(context, site) if exponent < 0 else max(int(site.attrs.get("zeros_read", 0)), 0)
        factor = closing_factor(context.runs[0], site, 0) if exponent < 0 else ""
        if not (zeros or factor) or not _breaks(context, site) or is_undone(context, site):
            return None
        where = f"zero at {zeros} place{'s' * (zeros > 1)} with the batch of make_batch() and any weights"
        if not zeros:
            where = f"a product with the result of {factor}, which is zero for much of what it reads"
        breaks = "infinite there" if exponent < 0 else "its gradient is infinite there, and times zero NaN"
        return context.finding(
            self, site, f"{named(site)} of what is {where}: {breaks}", chain=chain(context, site), zeros=zeros
        )

    def _of_small_difference(self, context: GraphContext, site: Site) -> Finding | None:
        """A difference that is never negative, but for its rounding: of moments, with an eps or not, of distances."""
        if root_exponent(site) is None:
            return None
        eps = eps_before(context.runs[0], site)
        if cancels(context.runs[0], site):
            return context.finding(
                self,
                site,
                f"{site.op} of a difference that rounding can make negative (E[x^2] - E[x]^2): NaN; use var or std",
                chain=chain(context, site),
            )
        if eps is not None and (below := runs_below_zero(context, site, eps)):
            largest = min(mean for _, mean in below)
            return context.finding(
                self,
                site,
                f"{site.op} of E[x^2] - E[x]^2 + {eps:g}: rounding takes the difference below -{eps:g} from means over "
                f"{largest:.1g} on (under {recipes_in(tuple(each for each, _ in below))}), and the result is NaN; use "
                "var, or subtract the mean first",
                eps=eps,
                chain=chain(context, site),
            )
        if is_of_distance(context.runs[0], site):
            return context.finding(
                self,
                site,
                f"{site.op} of |a|^2 - 2ab + |b|^2, which rounding makes negative for near points: NaN; clamp it above "
                "zero, or use torch.cdist",
                chain=chain(context, site),
            )
        return None

    def _at_zero(self, context: GraphContext, site: Site, bad: tuple[Run, ...]) -> Finding | None:
        """What can be exactly zero in every format, without an eps."""
        if not bad or len(bad) < len(context.runs) or not _breaks(context, site):
            return None
        is_inverse = (root_exponent(site) or 0) < 0
        what = "it" if is_inverse else "its gradient"
        if is_between_all_pairs(bad[0].ranges, site):
            return context.finding(
                self,
                site,
                f"{named(site)} over all pairs of one tensor's rows: a row and itself are exactly zero apart, "
                f"where {what} is infinite, and no mask behind "
                "it helps (0 * inf is NaN); add an eps under the root, or leave the diagonal out before it",
                severity=None if context.train else Severity.INFO,
                chain=chain(context, site),
            )
        if is_undone(context, site):
            return None
        normalised = ", and what is normalised by it NaN" if not is_inverse and normalised_by(context, site) else ""
        return context.finding(
            self,
            site,
            f"{named(site)} of what can be exactly zero, without an eps: {what} is infinite there{normalised}",
            severity=None if is_inverse and gives_zeros(bad[0], site) else Severity.INFO,
            chain=chain(context, site),
        )

    def _below_zero(self, context: GraphContext, site: Site) -> Finding | None:
        """What has both signs, as far as its terms show."""
        if root_exponent(site) is not None and is_of_difference(context, site):
            return context.finding(
                self,
                site,
                f"{named(site)} of a difference, which can be below zero as far as its terms show, and is NaN there; "
                "clamp it",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
        if (root_exponent(site) or 0) < 0 and _vanishes_in_batch(context, site):
            return context.finding(
                self,
                site,
                f"{named(site)} of a sum of numbers of the batch, which is zero where all of them are: infinite there; "
                "clamp it, or take such rows out",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
        if root_exponent(site) is not None and (what := spectrum_behind(context.runs[0], site)):
            return context.finding(
                self,
                site,
                f"{named(site)} of {what}",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
        if is_signed(context.runs[0], site):
            return context.finding(
                self,
                site,
                f"{named(site)} of the output of a layer, which has both signs: NaN below zero",
                chain=chain(context, site),
            )
        return None

    def _lost(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """An eps that no format of 16 bits has, added to what the user's code alone keeps above zero."""
        eps, runs = lost_eps(context, site)
        if runs:
            yield context.finding(
                self,
                site,
                f"the eps of {eps:g} under {named(site)} rounds to zero under {recipes_in(runs)}: it guards nothing "
                "where what it is added to is zero; add it in float32",
                severity=Severity.INFO,
                eps=eps,
                chain=chain(context, site),
            )


def _vanishes_in_batch(context: GraphContext, site: Site) -> bool:
    """Whether a root is taken of a sum or mean of numbers of the batch that are not negative and may all be zero, as of
    the edges of a node."""
    run, root = context.runs[0], context.runs[0].ranges.root(site)
    if root is None or root.op not in ("sum", "mean") or is_loaded(run, root) or is_guarded_after(context, site):
        return False
    return of_batch(context, site).low == 0 and not any(
        after.op in _CHOOSE and any(run.ranges.covers(test, 0, site, 0) for test in _tests(run, after))
        for after in context.graph.consumers(site.id)
    )


_CHOOSE = ("masked_fill", "where")


def _tests(run: Run, site: Site) -> list[Site]:
    """The comparison that a choice is made by: of data, whose infinity no gradient passes."""
    return [test for place in (0, 1) if (test := run.ranges.root(site, place)) is not None and test.op in _COMPARES]


_COMPARES = ("eq", "ne", "gt", "lt", "ge", "le")


def _breaks(context: GraphContext, site: Site) -> bool:
    """Whether a root or its gradient is infinite at zero, and that counts."""
    exponent = root_exponent(site)
    return exponent is not None and (exponent < 0 or not context.train or site.inputs[0].requires_grad)
