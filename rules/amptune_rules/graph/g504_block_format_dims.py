"""G504: a reduction length that the blocks of a microscaling format do not divide."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.hardware import MX_BLOCK, NVFP4_BLOCK, Gpu, padded
from amptune.core.ops import Family
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

BLACKWELL = (10, 0)


class BlockFormatDims(GraphRule):
    """K of a linear is not a multiple of the block of MXFP8 (32) or NVFP4 (16), on a GPU that has them.

    ## What it does
    For FP8 recipes asked about by name on Blackwell GPUs, looks at K of every noticeable linear.

    ## Why is this bad
    In microscaling formats 32 (MX) or 16 (NVFP4) neighbours along the reduction share a scale: the formats are not
    defined for other lengths, and the call raises.

    ## Example
    ```python
    self.fc = nn.Linear(1000, 4096)
    ```

    ## Use instead
    ```python
    self.fc = nn.Linear(1024, 4096)
    ```

    ## Fix safety
    No automatic fix: the size is part of the model.

    ## References
    OCP Microscaling Formats (MX) specification 1.0; pytorch pull request 147548.
    """

    code = "G504"
    name = "block-format-dims"
    severity = Severity.WARNING
    INVALID = (
        Example("in_features of 1000 on a B200", model_file(
            "return self.fc(x)  # <- G504", init="self.fc = nn.Linear(1000, 2048)", batch="torch.randn(64, 1000)"),
            options={"gpus": ("b200",), "recipes": ("fp8-rowwise",)}),
    )  # fmt: skip
    VALID = (
        Example("in_features of 1024", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(1024, 2048)", batch="torch.randn(64, 1024)"),
            options={"gpus": ("b200",), "recipes": ("fp8-rowwise",)}),
        Example("an H100 has no block formats", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(1000, 2048)", batch="torch.randn(64, 1000)"),
            options={"gpus": ("h100",), "recipes": ("fp8-rowwise",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each linear."""
        asked = context.recipes_named and any(recipe.fp8 for recipe in context.recipes)
        gpus = [gpu for gpu in context.tensor_core_gpus() if _has_block_formats(gpu)]
        if not asked or not gpus:
            return
        for site, gemm in context.large_gemms(Family.GEMM):
            if site.op == "linear" and gemm.k % MX_BLOCK:
                formats = "MXFP8 and NVFP4" if gemm.k % NVFP4_BLOCK else "MXFP8"
                yield context.finding(
                    self,
                    site,
                    f"K = {gemm.k} is not a multiple of {MX_BLOCK}: this layer cannot run in {formats} on "
                    f"{gpus[0].key}; pad to {padded(gemm.k, MX_BLOCK)}",
                    dimension="K",
                    value=gemm.k,
                    padded=padded(gemm.k, MX_BLOCK),
                )


def _has_block_formats(gpu: Gpu) -> bool:
    return gpu.capability is not None and gpu.capability >= BLACKWELL
