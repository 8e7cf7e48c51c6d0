"""G213: an inverse function next to the end of its domain in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, formats_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import where_in

_ENDS = {"acos": (-1.0, 1.0), "asin": (-1.0, 1.0), "atanh": (-1.0, 1.0), "erfinv": (-1.0, 1.0), "logit": (0.0, 1.0)}


class DomainBoundary(GraphRule):
    """acos, asin, atanh, erfinv or logit in 16 bits of what may round to the end of the domain.

    ## What it does
    Reports them where they run in 16 bits and no literal keeps their input off the ends. (Under CUDA autocast acos,
    asin and erfinv run in FP32; atanh and logit do not.)

    ## Why is this bad
    0.9981 is 1 in BF16 and 0.99976 is 1 in FP16; atanh(1) is infinite, and so are the gradients of acos and asin at 1.

    ## Example
    ```python
    y = torch.atanh(x.clamp(-0.9999, 0.9999))
    ```

    ## Use instead
    ```python
    y = torch.atanh(x.float().clamp(-0.9999, 0.9999))
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.finfo(dtype).eps.
    """

    code = "G213"
    name = "domain-boundary"
    severity = Severity.WARNING
    INVALID = (
        Example("a clamp that 16 bits round away", model_file(
            "return torch.atanh(self.fc(x).clamp(-0.9999, 0.9999))  # <- G213")),
    )  # fmt: skip
    VALID = (
        Example("cast up first", model_file("return torch.atanh(self.fc(x).float().clamp(-0.9999, 0.9999))")),
        Example("a clamp that 16 bits can hold", model_file("return torch.atanh(self.fc(x).clamp(-0.9, 0.9))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such op."""
        for site, half in context.sites_in_half(*_ENDS):
            runs = tuple(run for run in half if _reaches_end(run, site))
            if runs:
                steps = ", ".join(f"{1 - f.epsilon / 2:.5g} is the last below 1 in {f}" for f in formats_in(runs, site))
                yield context.finding(
                    self,
                    site,
                    f"{site.op} runs in {where_in(runs, site)} and its input can round to the end of the "
                    f"domain ({steps}): infinite there; compute it in float32",
                )


def _reaches_end(run: Run, site: Site) -> bool:
    found = run.ranges.operand(site, 0)
    low, high = _ENDS[site.op]
    return found.low <= low or found.high >= high
