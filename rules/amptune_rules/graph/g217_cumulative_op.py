"""G217: a cumulative sum or product over a long axis in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import axis_length, where_in

LONG_AXIS = 256


class CumulativeOp(GraphRule):
    """cumsum, cumprod or logcumsumexp in 16 bits over 256 elements or more.

    ## What it does
    Reports them where they run in 16 bits: in half models and under CPU autocast (CUDA autocast runs cumsum and
    cumprod in FP32, logcumsumexp not).

    ## Why is this bad
    Every partial result is rounded to 16 bits: a BF16 cumsum of ones stops growing at 256, an FP16 one at 2048.

    ## Example
    ```python
    positions = mask.to(torch.bfloat16).cumsum(-1)
    ```

    ## Use instead
    ```python
    positions = mask.cumsum(-1, dtype=torch.float32)
    ```

    ## Fix safety
    No automatic fix. `amptune tune` pins such an op in FP32.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G217"
    name = "cumulative-op"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("cumsum in a bf16 model", model_file("return self.fc(x).cumsum(0)  # <- G217", cast=".bfloat16()",
                                                     batch="torch.randn(512, 64).bfloat16()")),
    )  # fmt: skip
    VALID = (
        Example("cumsum under CUDA autocast", model_file("return self.fc(x).cumsum(0)", batch="torch.randn(512, 64)")),
        Example("a short axis", model_file("return self.fc(x).cumsum(-1)", cast=".bfloat16()",
                                           batch="torch.randn(512, 64).bfloat16()")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each cumulative op."""
        for site, runs in context.sites_in_half("cumsum", "cumprod", "logcumsumexp"):
            dim = site.attrs.get("dim")
            length = site.inputs[0].shape[int(dim)] if isinstance(dim, int) else axis_length(site)
            if length >= LONG_AXIS:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} over {length} elements runs in {where_in(runs, site)}: each partial result is rounded; "
                    + ("cast its input with .float()" if site.op == "logcumsumexp" else "pass dtype=torch.float32"),
                    count=length,
                )
