"""G106: a grouped or depthwise convolution leaves the tensor cores mostly idle."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import LARGE_SHARE, GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

TILE = 16


class GroupedConv(GraphRule):
    """A grouped or depthwise convolution that is a large part of the FLOPs.

    ## What it does
    Reports convolutions whose groups have fewer than 16 channels on one side.

    ## Why is this bad
    A tensor core multiplies tiles of 16 and more channels; a group with fewer leaves the rest of the tile empty, so
    the convolution is bound by memory and gains from a 16-bit format only what the bytes gain.

    ## Example
    ```python
    nn.Conv2d(512, 512, 3, groups=512)
    ```

    ## Use instead
    ```python
    nn.Conv2d(512, 512, 3, groups=8)   # where the architecture is still open
    ```

    ## Fix safety
    Information only.

    ## References
    NVIDIA, Convolutional Layers User's Guide, section on depthwise and grouped convolutions.
    """

    code = "G106"
    name = "grouped-depthwise-conv"
    severity = Severity.INFO
    INVALID = (
        Example("depthwise", model_file("return self.conv(x)  # <- G106",
                                        init="self.conv = nn.Conv2d(64, 64, 3, groups=64)",
                                        batch="torch.randn(2, 64, 32, 32)")),
    )  # fmt: skip
    VALID = (
        Example("groups of 32 channels", model_file("return self.conv(x)",
                                                    init="self.conv = nn.Conv2d(64, 64, 3, groups=2)",
                                                    batch="torch.randn(2, 64, 32, 32)")),
        Example("a small part of the model", model_file(
            "return self.pointwise(self.depthwise(x))",
            init="self.depthwise = nn.Conv2d(256, 256, 3, groups=256)\nself.pointwise = nn.Conv2d(256, 256, 1)",
            batch="torch.randn(2, 256, 32, 32)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such convolution."""
        if not context.tensor_core_gpus():
            return
        for site in context.graph:
            groups = int(site.attrs.get("groups") or 1)
            if op_named(site.op).family is not Family.CONV or groups == 1 or context.share_of_line(site) < LARGE_SHARE:
                continue
            narrow = min((gemm.n for gemm in site.gemms), default=TILE)
            if narrow < TILE:
                yield context.finding(
                    self,
                    site,
                    f"groups of {narrow} output channel{'s' if narrow > 1 else ''} fill {narrow} of {TILE} columns "
                    "of a "
                    "tensor core tile: bound by memory in every format",
                    groups=groups,
                    value=narrow,
                    flops_share=round(context.share_of_line(site), 4),
                )
