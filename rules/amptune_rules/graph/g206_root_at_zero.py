"""G206: a square root where its argument can be zero."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import chain, floating_sites, reads_weights_alone
from amptune_rules.graph._roots import is_fractional, is_root, may_be_negative, named, touches_zero
from amptune_rules.graph.causes.noisy_sums import with_noise
from amptune_rules.graph.causes.roots_at_zero import at_zero, lost_beside, rounded_eps, zero_in_batch
from amptune_rules.graph.causes.roots_below_zero import below_in_batch, below_zero, of_small_difference
from amptune_rules.graph.causes.singular_matrices import singular_matrices


class RootAtZero(GraphRule):
    """A sqrt, rsqrt or fractional power of what can be zero or less, or whose eps the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each sqrt, rsqrt and power below 1, rounded as each recipe would, and to
    powers such as 1.5, which are NaN below zero. A variance as E[x^2] - E[x]^2 is rounded below zero, and below an
    eps that is small against the rounding. The root of another difference, or of a sum with noise of both signs, is
    information where nothing says that it stays above zero. Norm layers with eps=0 are reported too, and cholesky, a
    root as well, of a product of a tensor with itself that is singular by its shape.

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
                if (found := self._judged(context, site)) is not None:
                    yield found
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

    def _judged(self, context: GraphContext, site: Site) -> Finding | None:
        """The gravest of what is to be said of a root."""
        bad = tuple(run for run in context.runs if touches_zero(run.ranges.operand(site, 0)))
        return (
            rounded_eps(self, context, site, bad)
            or of_small_difference(self, context, site)
            or below_in_batch(self, context, site)
            or zero_in_batch(self, context, site)
            or at_zero(self, context, site, bad)
            or below_zero(self, context, site)
            or with_noise(self, context, site)
            or lost_beside(self, context, site)
        )
