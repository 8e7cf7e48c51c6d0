"""G206: a square root where its argument can be zero."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, recipes_in
from amptune.core.intervals import Range, exponent_of
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import eps_before, is_signed


class RootAtZero(GraphRule):
    """A sqrt or rsqrt of what can be zero, or whose eps the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each sqrt, rsqrt and pow(0.5), rounded as each recipe would.

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
    )  # fmt: skip
    VALID = (
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
        for site in context.graph:
            if not context.runs or not _is_root(site):
                continue
            bad = tuple(run for run in context.runs if _touches_zero(run.ranges.operand(site, 0)))
            eps = eps_before(context.runs[0], site)
            if bad and eps is not None:
                yield context.finding(
                    self,
                    site,
                    f"the eps of {eps:g} under the root rounds to zero under {recipes_in(bad)}: at zero the "
                    "gradient of "
                    "sqrt, and rsqrt itself, is infinite",
                    eps=eps,
                )
            elif bad and len(bad) == len(context.runs):
                yield context.finding(
                    self,
                    site,
                    f"{site.op} of what can be exactly zero, without an eps: its gradient there is infinite",
                    severity=Severity.INFO,
                )
            elif is_signed(context.runs[0], site):
                yield context.finding(
                    self, site, f"{site.op} of the output of a layer, which has both signs: NaN below zero"
                )


def _is_root(site: Site) -> bool:
    return site.op in ("sqrt", "rsqrt") or (site.op == "pow" and exponent_of(site) in (0.5, -0.5))


def _touches_zero(found: Range) -> bool:
    return found.is_known and -1e30 < found.low <= 0
