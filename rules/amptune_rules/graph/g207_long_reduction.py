"""G207: a long sum whose result is stored in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import axis_length, runs_in, where_in


class LongReduction(GraphRule):
    """A sum over so many elements that its result leaves FP16.

    ## What it does
    Reports sums that run in FP16 over more elements than 65504 divided by the largest magnitude that the graph allows
    (1 where nothing bounds the elements). Under CUDA autocast sum runs in FP32 and is not reported.

    ## Why is this bad
    The kernel accumulates in FP32, but the result is stored in FP16: a sum of 1e5 ones is infinite.

    ## Example
    ```python
    total = (probabilities.half() > 0).half().sum()
    ```

    ## Use instead
    ```python
    total = probabilities.sum(dtype=torch.float32)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.sum; PyTorch notes on numerical accuracy.
    """

    code = "G207"
    name = "long-reduction"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a sum over 128 thousand elements in a half model", model_file(
            "return self.fc(x).sum()  # <- G207", cast=".half()", batch="torch.randn(2048, 64).half()")),
    )  # fmt: skip
    VALID = (
        Example("the same under autocast, where sum is FP32", model_file("return self.fc(x).sum()",
                                                                          batch="torch.randn(2048, 64)")),
        Example("a mean", model_file("return self.fc(x).mean()", cast=".half()", batch="torch.randn(2048, 64).half()")),
        Example("dtype named", model_file("return self.fc(x).sum(dtype=torch.float32)", cast=".half()",
                                          batch="torch.randn(2048, 64).half()")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each sum."""
        for site, half in context.sites_in_half("sum"):
            runs = runs_in(half, site, Format.FP16)
            if not runs:
                continue
            magnitude = min(run.ranges.operand(site, 0).magnitude for run in runs)
            count = axis_length(site)
            largest = magnitude if magnitude < Format.FP16.max else 1.0
            if count * largest > Format.FP16.max:
                yield context.finding(
                    self,
                    site,
                    f"sum of {count} elements in {where_in(runs, site)}: with elements of {largest:g} it passes 65504; "
                    "use dtype=torch.float32",
                    count=count,
                    format="fp16",
                )
