"""G109: a matrix product whose tiles leave most of the last wave empty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Gemm, Site
from amptune.core.graph_context import LARGE_SHARE, GraphContext
from amptune.core.hardware import Gpu
from amptune.core.ops import Family
from amptune.core.roofline import Pass, operand_seconds, oriented, peak_of, wave_share
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

WASTED = 0.30
"""Report from this share of the multiprocessors' time lost."""
WORTH_FLOPS = 1_000_000_000
"""A smaller product is over before its waves matter."""


class WaveQuantisation(GraphRule):
    """The output tiles of a large matrix product fill its last wave badly.

    ## What it does
    Cuts the output of each large product into the tiles that libraries use (128 x 256, 128 x 128, 64 x 64, ...) and
    counts the waves over the GPU's multiprocessors; reports where the best tile loses 30 % or more. Long reductions
    are split over the idle multiprocessors and are not reported, and on a GPU whose step waits for the processor
    nothing is.

    ## Why is this bad
    A wave takes as long for 5 tiles as for 132. The waste is the same in all formats of the tensor cores, so the gain
    from a narrower format is less than its peak promises.

    ## Example
    ```python
    self.fc = nn.Linear(1024, 17 * 128)   # with 8 * 128 rows on 132 multiprocessors: 136 tiles
    ```

    ## Use instead
    ```python
    self.fc = nn.Linear(1024, 16 * 128)   # 128 tiles: one wave
    ```

    ## Fix safety
    Information only: the estimate is of a model of the library's choices.

    ## References
    NVIDIA, Matrix Multiplication Background User's Guide, wave quantization.
    """

    code = "G109"
    name = "wave-quantisation"
    severity = Severity.INFO
    INVALID = (
        Example("17 x 8 tiles on 132 multiprocessors", model_file(
            "return self.fc(x)  # <- G109", init="self.fc = nn.Linear(8192, 8 * 256)",
            batch="torch.randn(17 * 128, 8192)"), options={"gpus": ("h100",)}),
    )  # fmt: skip
    VALID = (
        Example("a step that waits for the processor", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(1024, 17 * 128)",
            batch="torch.randn(8 * 128, 1024)"), options={"gpus": ("h100",)}),
        Example("16 x 8 tiles on 132 multiprocessors", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(1024, 16 * 128)",
            batch="torch.randn(8 * 128, 1024)"), options={"gpus": ("h100",)}),
        Example("few rows of a large matrix: reading it takes the time", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(32768, 17 * 128)",
            batch="torch.randn(16, 32768)"), options={"gpus": ("h100",)}),
        Example("many waves", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(4096, 4096)",
            batch="torch.randn(8192, 4096)"), options={"gpus": ("h100",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each shape of output and wasted share, at the first site that has it."""
        found: dict[tuple[object, ...], list[tuple[Site, Mapping[str, float]]]] = {}
        for site, gemm in context.large_gemms(Family.GEMM):
            if context.share(site) < LARGE_SHARE:
                continue
            lost = {
                gpu.key: 1 - share
                for gpu in context.tensor_core_gpus()
                if gpu.key not in context.waiting and (share := _share(gemm, gpu)) is not None
            }
            bad = {key: round(value, 2) for key, value in lost.items() if value >= WASTED}
            if bad:
                found.setdefault((gemm.m, gemm.n, *bad.items()), []).append((site, bad))
        for (m, n, *_), same in found.items():
            yield self._of_shape(context, [m, n], same)

    def _of_shape(
        self, context: GraphContext, shape: list[object], same: Sequence[tuple[Site, Mapping[str, float]]]
    ) -> Finding:
        first, bad = same[0]
        flops = {site.id: site.flops for site, _ in same}
        listed = ", ".join(f"{value:.0%} on {key}" for key, value in bad.items())
        return context.finding(
            self,
            first,
            f"a {shape[0]} x {shape[1]} output cut into tiles leaves multiprocessors idle: about {listed} lost in the "
            "forward product",
            dimension="M x N",
            value=shape,
            lost=dict(bad),
            sites=list(flops),
            flops_share=round(sum(flops.values()) / max(context.graph.flops, 1), 4),
        )


def _share(gemm: Gemm, gpu: Gpu) -> float | None:
    """The used share of the multiprocessors; ``None`` where it does not matter: the product is over at once, or reading
    its operands takes longer than multiplying them, as with few rows."""
    forward, best = oriented(gemm, Pass.FORWARD), gpu.best_16bit
    bound_by_memory = operand_seconds(gemm, best, gpu) > gemm.flops / peak_of(gpu, best)
    return None if bound_by_memory or gemm.flops < WORTH_FLOPS else wave_share(forward, best, gpu)
