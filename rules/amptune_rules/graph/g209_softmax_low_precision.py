"""G209: a softmax that is computed in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import axis_length, where_in

LONG_AXIS = 256


class SoftmaxLowPrecision(GraphRule):
    """softmax, log_softmax or logsumexp whose input and result are in 16 bits.

    ## What it does
    Reports them where they stay in 16 bits: in half models, in regions where autocast is off, and under CPU autocast
    (CUDA autocast runs them in FP32). A softmax over fewer than 256 elements is information only.

    ## Why is this bad
    The result is rounded to 3 digits in BF16: probabilities over a long axis no longer sum to 1, and a loss read from
    a rounded log_softmax moves in steps of 0.03 around 10.

    ## Example
    ```python
    weights = scores.half().softmax(-1)
    ```

    ## Use instead
    ```python
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    ```

    ## Fix safety
    No automatic fix. `amptune tune` pins such an op in FP32.

    ## References
    ATen/autocast_mode.h (torch 2.13); Mixed Precision Training (ICLR 2018).
    """

    code = "G209"
    name = "softmax-low-precision"
    severity = Severity.WARNING
    INVALID = (
        Example("log_softmax in a bf16 model", model_file(
            "return F.log_softmax(self.fc(x), -1)  # <- G209", cast=".bfloat16()",
            batch="torch.randn(32, 64).bfloat16()")),
        Example("softmax under CPU autocast", model_file("return F.softmax(self.fc(x), -1)  # <- G209"),
                options={"gpus": ("cpu",)}),
    )  # fmt: skip
    VALID = (
        Example("softmax under CUDA autocast", model_file("return F.softmax(self.fc(x), -1)")),
        Example("dtype named", model_file("return F.softmax(self.fc(x), -1, dtype=torch.float32)", cast=".bfloat16()",
                                          batch="torch.randn(32, 64).bfloat16()")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each softmax."""
        for site, runs in context.sites_in_half("softmax", "log_softmax", "logsumexp", "softmin"):
            length = axis_length(site)
            small = site.op in ("softmax", "softmin") and length < LONG_AXIS
            yield context.finding(
                self,
                site,
                f"{site.op} over {length} elements stays in {where_in(runs, site)}: its result keeps 3 digits; "
                "pass dtype=torch.float32",
                severity=Severity.INFO if small else None,
                count=length,
            )
