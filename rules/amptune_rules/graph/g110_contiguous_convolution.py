"""G110: convolutions in the contiguous (NCHW) layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import LARGE_SHARE, GraphContext
from amptune.core.hardware import Gpu
from amptune.core.roofline import Traffic, traffic_seconds
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._alignment import WORTH_A_WARNING
from amptune_rules.graph._examples import model_file


class ContiguousConvolution(GraphRule):
    """The convolutions of a model run in the contiguous layout, not in channels_last.

    ## What it does
    Reports once for a model whose 2-d and 3-d convolutions are a large part of its FLOPs and read contiguous inputs.

    ## Why is this bad
    The tensor cores' convolution kernels work on channels_last data: contiguous tensors are transposed before and
    after each of the three passes. A ResNet-50 step on an H100 takes 60 ms so in BF16, and 35 ms in channels_last.

    ## Example
    ```python
    model = Model()
    ```

    ## Use instead
    ```python
    model = Model().to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    ```

    ## Fix safety
    No automatic fix; the plan of `amptune tune` has the layout as one of its flags. Numbers change in the last digits.

    ## References
    PyTorch tutorial, Channels Last Memory Format; tests/benchmarks/reports for the measured step times.
    """

    code = "G110"
    name = "contiguous-convolution"
    severity = Severity.WARNING
    INVALID = (
        Example("a contiguous image", model_file("return self.conv(x)  # <- G110",
                                                 init="self.conv = nn.Conv2d(64, 64, 3)",
                                                 batch="torch.randn(4, 64, 32, 32)")),
        Example("a contiguous volume", model_file("return self.conv(x)  # <- G110",
                                                  init="self.conv = nn.Conv3d(64, 64, 3)",
                                                  batch="torch.randn(4, 64, 16, 32, 32)")),
    )  # fmt: skip
    VALID = (
        Example("channels_last", model_file("return self.conv(x)", init="self.conv = nn.Conv2d(64, 64, 3)",
                                            cast=".to(memory_format=torch.channels_last)",
                                            batch="torch.randn(4, 64, 32, 32).to(memory_format=torch.channels_last)")),
        Example("weights for each sample", model_file(
            """
            weight = (self.weight * (1 + x.mean((2, 3))).view(4, 1, 64, 1, 1)).view(-1, 64, 3, 3)
            return F.conv2d(x.reshape(1, -1, 32, 32), weight, groups=4).view(4, 64, 30, 30)
            """, init="self.weight = nn.Parameter(torch.randn(1, 64, 64, 3, 3))", batch="torch.randn(4, 64, 32, 32)")),
        Example("one dimension has no such layout", model_file("return self.conv(x)",
                                                               init="self.conv = nn.Conv1d(64, 64, 3)",
                                                               batch="torch.randn(4, 64, 128)")),
        Example("a patch embedding in a transformer", model_file(
            "return self.fc(self.conv(x).flatten(2).transpose(1, 2))",
            init="self.conv = nn.Conv2d(3, 512, 16, 16)\nself.fc = nn.Linear(512, 32768)",
            batch="torch.randn(2, 3, 64, 64)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for the model, at its largest such convolution."""
        if not any(gpu.is_native(Format.FP16) for gpu in context.tensor_core_gpus()):
            return
        contiguous = [site for site in context.graph if _is_contiguous(site)]
        share = sum(site.flops for site in contiguous) / max(context.graph.flops, 1)
        if share < LARGE_SHARE:
            return
        if _loses(context):
            return
        largest = max(contiguous, key=lambda site: site.flops)
        moved = sum(_transposed_bytes(site, context.train) for site in contiguous)
        saves = {gpu.key: _net(context, gpu, moved) for gpu in context.tensor_core_gpus()}
        yield context.finding(
            self,
            largest,
            f"{len(contiguous)} convolution(s) with {share:.0%} of the FLOPs run in contiguous layout: tensor core "
            f"kernels transpose their tensors before and after; use {_formats(contiguous)}",
            severity=self._severity(context, saves),
            flops_share=round(share, 4),
            count=len(contiguous),
            saves_ms=saves,
        )

    def _severity(self, context: GraphContext, saves: dict[str, float]) -> Severity:
        shares = [
            context.step_share(gpu, f"autocast-{gpu.best_16bit}", saves[gpu.key]) for gpu in context.tensor_core_gpus()
        ]
        worth = any(share is not None and share >= WORTH_A_WARNING for share in shares)
        return Severity.WARNING if worth else Severity.INFO


def _loses(context: GraphContext) -> bool:
    """Whether the other layout is predicted to take longer wherever a step was predicted that the GPU bounds: what
    other ops lose in it, as norms of groups, is more than the transposes take."""
    steps = [
        [context.step_ms.get((gpu.key, f"autocast-{gpu.best_16bit}{suffix}")) for suffix in ("", "+fixed")]
        for gpu in context.tensor_core_gpus()
    ]
    known = [fixed - now for now, fixed in steps if now is not None and fixed is not None]
    return bool(known) and min(known) > 0


def _net(context: GraphContext, gpu: Gpu, moved: int) -> float:
    """Milliseconds that the transposes take, less what other ops lose in that layout, where the step was predicted."""
    saved, recipe = traffic_seconds(moved, Traffic.LAYOUT, gpu) * 1e3, f"autocast-{gpu.best_16bit}"
    now, fixed = (context.step_ms.get((gpu.key, recipe + suffix)) for suffix in ("", "+fixed"))
    return saved if now is None or fixed is None else max(0.0, min(saved, now - fixed))


def _transposed_bytes(site: Site, train: bool) -> int:
    """Bytes read and written by the transposes of input and output, in 16 bits, over the passes that run."""
    elements = sum(tensor.numel for tensor in (*site.inputs[:1], *site.outputs[:1]))
    passes = 1 + ((1 + site.inputs[0].requires_grad) if train else 0)
    return 2 * 2 * elements * passes * site.calls


def _is_contiguous(site: Site) -> bool:
    spatial = site.op in ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")
    return spatial and site.attrs.get("channels_last") is False and not _is_by_sample(site)


def _is_by_sample(site: Site) -> bool:
    """Whether a convolution has weights for each sample: the batch stands in its channels, so the layout of the images
    is lost on the way there whatever it was."""
    return site.attrs.get("groups", 1) not in (1, None) and len(site.inputs) > 1 and site.inputs[0].shape[0] == 1


def _formats(sites: Sequence[Site]) -> str:
    """The memory formats to use, for images and for volumes, where either is a part of the FLOPs worth a word."""
    total = sum(site.flops for site in sites)
    volumes = sum(site.flops for site in sites if len(site.inputs[0].shape) == 5) / max(total, 1)
    if volumes < LARGE_SHARE:
        return "memory_format=torch.channels_last"
    if volumes > 1 - LARGE_SHARE:
        return "memory_format=torch.channels_last_3d"
    return "memory_format=torch.channels_last for images and torch.channels_last_3d for volumes"
