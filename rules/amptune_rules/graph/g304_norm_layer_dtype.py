"""G304: a norm layer whose parameters were cast to 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class NormLayerDtype(GraphRule):
    """A norm layer with 16-bit parameters, and for BatchNorm 16-bit running statistics.

    ## What it does
    Reports batch, layer, group, RMS and instance norms whose parameters are in FP16 or BF16 in the model as written.

    ## Why is this bad
    Running statistics are updated by a hundredth of the difference each step: in BF16 that is under half an ulp and is
    lost, so they stop moving. Weights near 1 move in steps of 0.008. The kernels take FP32 parameters beside 16-bit
    inputs, and for BatchNorm are faster so.

    ## Example
    ```python
    model.half()
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", dtype=torch.float16): ...
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Mixed Precision Training (ICLR 2018), section on batch normalization.
    """

    code = "G304"
    name = "norm-layer-dtype"
    severity = Severity.WARNING
    INVALID = (
        Example("BatchNorm in a half model", model_file(
            "return self.bn(self.conv(x))  # <- G304",
            init="self.conv = nn.Conv2d(8, 8, 3)\nself.bn = nn.BatchNorm2d(8)", cast=".bfloat16()",
            batch="torch.randn(2, 8, 16, 16).bfloat16()")),
    )  # fmt: skip
    VALID = (
        Example("FP32 parameters", model_file(
            "return self.bn(self.conv(x))", init="self.conv = nn.Conv2d(8, 8, 3)\nself.bn = nn.BatchNorm2d(8)",
            batch="torch.randn(2, 8, 16, 16)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each norm; BatchNorm is a warning, the others are information."""
        for site in context.graph:
            if op_named(site.op).family is not Family.NORM:
                continue
            half = [param for param in site.params if param.meta.dtype in HALF]
            if half:
                batch = site.op == "batch_norm"
                lost = ", and its running statistics lose their updates" if batch and context.train else ""
                yield context.finding(
                    self,
                    site,
                    f"the parameters of this {site.op} are {half[0].meta.dtype}: weights near 1 move in "
                    f"steps of {'0.008' if half[0].meta.dtype == 'bfloat16' else '0.001'}{lost}; keep it in float32",
                    severity=Severity.WARNING if batch else Severity.INFO,
                )
