"""G404: a matrix decomposition, inverse or solve of 16-bit data."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext, recipes_in, stopped
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph.g401_op_unsupported import unsupported_dtype


class Linalg(GraphRule):
    """cholesky, qr, svd, solve, inverse, det or eigenvalues of 16-bit inputs.

    ## What it does
    Reports linear algebra that gets 16-bit inputs under a recipe. CPU autocast casts some of it to FP32, CUDA none.

    ## Why is this bad
    There are no 16-bit kernels: the call raises.

    ## Example
    ```python
    y = torch.linalg.inv(self.fc(x))
    ```

    ## Use instead
    ```python
    y = torch.linalg.inv(self.fc(x).float())
    ```

    ## Fix safety
    No automatic fix.

    ## References
    amptune/data/op_support.json and its generator tests/benchmarks/op_support.py.
    """

    code = "G404"
    name = "linalg-in-half"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("an inverse under autocast", model_file(
            "return torch.linalg.inv(self.fc(x))  # <- G404", batch="torch.randn(2, 64, 64)")),
    )  # fmt: skip
    VALID = (
        Example("cast up first", model_file("return torch.linalg.inv(self.fc(x).float())",
                                            batch="torch.randn(2, 64, 64)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op."""
        for site in context.graph:
            if op_named(site.op).family is not Family.LINALG:
                continue
            runs = tuple(run for run in context.runs if unsupported_dtype(run, site))
            if runs:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} has no {unsupported_dtype(runs[0], site)} kernel and raises under "
                    f"{recipes_in(runs)}: cast its input with .float()",
                    stops=stopped(runs),
                )
