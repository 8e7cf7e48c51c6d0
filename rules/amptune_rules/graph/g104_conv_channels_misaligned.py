"""G104: the channels of a convolution are not a multiple of 8."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import SMALL_SHARE, GraphContext
from amptune.core.hardware import multiple_for, padded
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class ConvChannelsMisaligned(GraphRule):
    """Input or output channels of a convolution are not a multiple of 8.

    ## What it does
    Looks at the channels of every ungrouped convolution that is a noticeable part of the model's FLOPs. Sides of 8
    channels and fewer, as the 3 of an image, are left out: to pad them would double the work or more.

    ## Why is this bad
    In channels_last layout the channels are the contiguous dimension, loaded 16 bytes at a time. Since cuDNN 7.6.3
    odd channels are padded by the library, which costs a copy of the tensor and the padded share of the work.

    ## Example
    ```python
    self.conv = nn.Conv2d(62, 130, 3)
    ```

    ## Use instead
    ```python
    self.conv = nn.Conv2d(64, 136, 3)
    ```

    ## Fix safety
    No automatic fix: channels are part of the model and of its checkpoints.

    ## References
    NVIDIA, Convolutional Layers User's Guide.
    """

    code = "G104"
    name = "conv-channels-misaligned"
    severity = Severity.INFO
    INVALID = (
        Example("62 channels", model_file("return self.conv(x)  # <- G104", init="self.conv = nn.Conv2d(62, 64, 3)",
                                          batch="torch.randn(4, 62, 32, 32)")),
    )  # fmt: skip
    VALID = (
        Example("an image", model_file("return self.conv(x)", init="self.conv = nn.Conv2d(3, 64, 3)",
                                       batch="torch.randn(4, 3, 32, 32)")),
        Example("64 channels", model_file("return self.conv(x)", init="self.conv = nn.Conv2d(64, 64, 3)",
                                          batch="torch.randn(4, 64, 32, 32)")),
        Example("a depthwise convolution", model_file("return self.conv(x)",
                                                      init="self.conv = nn.Conv2d(62, 62, 3, groups=62)",
                                                      batch="torch.randn(4, 62, 32, 32)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each convolution, naming both sides where both are odd."""
        multiple = multiple_for(Format.BF16)
        if not context.tensor_core_gpus():
            return
        for site in context.graph:
            if op_named(site.op).family is not Family.CONV or context.share(site) < SMALL_SHARE:
                continue
            if context.stays_wide(site):
                continue
            sides = {name: size for name, size in channels(site).items() if size > multiple and size % multiple}
            if sides:
                listed = " and ".join(
                    f"{name} = {size} (pad to {padded(size, multiple)})" for name, size in sides.items()
                )
                yield context.finding(
                    self,
                    site,
                    f"{listed}: not a multiple of {multiple}, so cuDNN pads a copy of the tensor",
                    dimension="channels",
                    value=list(sides.values()),
                    padded=[padded(size, multiple) for size in sides.values()],
                    waste=round(max(padded(size, multiple) / size - 1 for size in sides.values()), 6),
                    flops_share=round(context.share(site), 4),
                )


def channels(site: Site) -> dict[str, int]:
    """Input and output channels of an ungrouped convolution; empty for a grouped one or an unknown shape."""
    if int(site.attrs.get("groups") or 1) != 1 or not site.inputs or not site.outputs:
        return {}
    sides = {}
    for name, tensor in (("in_channels", site.inputs[0]), ("out_channels", site.outputs[0])):
        spatial = int(site.op[-2])
        if len(tensor.shape) > spatial:
            sides[name] = tensor.shape[-spatial - 1]
    return sides
