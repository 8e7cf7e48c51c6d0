"""G108: a linear that cannot run in FP8 because of its dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Gemm, Site
from amptune.core.graph_context import SMALL_GEMM_FLOPS, SMALL_SHARE, GraphContext
from amptune.core.hardware import FP8_MULTIPLE, padded
from amptune.core.recipes import converts_to_fp8
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._alignment import advised_size, asks_for_fp8, is_dear, rows_of_lines
from amptune_rules.graph._examples import model_file

FEW = 8
"""Columns up to which padding to 16 would double the work or more: nobody wants such a layer in FP8."""


class Fp8Dims(GraphRule):
    """K, N or, for its weight gradient, M of a linear is not a multiple of 16, which FP8 products require.

    ## What it does
    Looks at the linears that the FP8 recipes would convert, on GPUs that have FP8, and at explicit scaled_mm calls.

    ## Why is this bad
    torch.nn.functional.scaled_mm (cublasLt) refuses such operands: the call raises. FP8 training tools skip the layer,
    or pad it at a cost, so it stays in BF16. An error where the model itself calls scaled_mm or an FP8 recipe was
    asked for by name; information otherwise. The weight gradient reduces over the rows M, so it asks the same of them.

    ## Example
    ```python
    self.fc = nn.Linear(1000, 4096)
    ```

    ## Use instead
    ```python
    self.fc = nn.Linear(1008, 4096)
    ```

    ## Fix safety
    No automatic fix: the size is part of the model. `amptune tune` leaves such a layer in BF16 or pads it.

    ## References
    torch.nn.functional.scaled_mm; cuBLAS documentation, cublasLtMatmul, FP8 data types; torchao float8 training.
    """

    code = "G108"
    name = "fp8-dims"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("in_features of 1000", model_file("return self.fc(x)  # <- G108", init="self.fc = nn.Linear(1000, "
                                                                                       "2048)",
                                                  batch="torch.randn(64, 1000)"), options={"gpus": ("h100",)}),
        Example("1023 tokens", model_file(
            "return self.fc(x)  # <- G108", init="self.fc = nn.Linear(1024, 2048)",
            batch="torch.randn(4, 1023, 1024)"), options={"gpus": ("h100",)}),
    )  # fmt: skip
    VALID = (
        Example("rows that a weight gradient in FP8 takes", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(1024, 2048)", batch="torch.randn(4, 1024, 1024)"),
            options={"gpus": ("h100",)}),
        Example("in_features of 1008", model_file("return self.fc(x)", init="self.fc = nn.Linear(1008, 2048)",
                                                  batch="torch.randn(64, 1008)"), options={"gpus": ("h100",)}),
        Example("a GPU without FP8", model_file("return self.fc(x)", init="self.fc = nn.Linear(1000, 2048)",
                                                batch="torch.randn(64, 1000)"), options={"gpus": ("a100",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each linear or scaled_mm."""
        if not context.tensor_core_gpus():
            return
        asked = asks_for_fp8(context)
        for site, gemm in _candidates(context, linears=asked):
            certain = site.op == "scaled_mm" or context.recipes_named
            sides = {name: value for name, value in (("K", gemm.k), ("N", gemm.n)) if value % FP8_MULTIPLE}
            if not sides or (not certain and min(sides.values()) <= FEW):
                continue
            sizes = [padded(advised_size(context, site, value), FP8_MULTIPLE) for value in sides.values()]
            fp8 = [gpu.key for gpu in context.tensor_core_gpus() if gpu.is_native(Format.FP8_E4M3)]
            waste = max(size / value - 1 for value, size in zip(sides.values(), sizes, strict=True))
            if not certain and is_dear(context, waste, fp8):
                continue
            listed = " and ".join(
                f"{name} = {value} (pad to {size})" for (name, value), size in zip(sides.items(), sizes, strict=True)
            )
            effect = "the FP8 product raises" if certain else "it cannot run in FP8 and stays in BF16"
            yield context.finding(
                self,
                site,
                f"{listed}: not a multiple of {FP8_MULTIPLE}, so {effect}",
                severity=Severity.ERROR if certain else Severity.INFO,
                dimension=list(sides),
                value=list(sides.values()),
                padded=sizes,
                flops_share=round(context.share(site), 4),
            )
        if asked and context.train:
            yield from self._of_rows(context)

    def _of_rows(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each number of rows that FP8 weight gradients, which reduce over them, do not take."""
        first: dict[int, Site] = {}
        for site in context.graph:
            if converts_to_fp8(site) and _is_trained(site):
                for gemm in site.gemms:
                    if gemm.m % FP8_MULTIPLE:
                        first.setdefault(gemm.m, site)
        stops = [recipe.name for recipe in context.recipes if recipe.fp8]
        for ms, site in rows_of_lines(first):
            fits = [padded(m, FP8_MULTIPLE) for m in ms]
            rows = f"M = {ms[0]} rows (batch x sequence) is" if len(ms) == 1 else f"M = {ms[0]} to {ms[-1]} rows are"
            mend = f"{fits[0]} rows fit" if len(ms) == 1 else "pad what each site gets to the next multiple"
            yield context.finding(
                self,
                site,
                f"{rows} not a multiple of {FP8_MULTIPLE}: a weight gradient in FP8 "
                f"reduces over them and raises (torchao's, without pad_inner_dim); {mend}",
                severity=Severity.INFO,
                dimension=["M"],
                value=ms,
                padded=fits,
                stops=stops,
            )


def _is_trained(site: Site) -> bool:
    return any(param.meta.requires_grad for param in site.params) or any(each.requires_grad for each in site.inputs)


def _candidates(context: GraphContext, linears: bool) -> Iterator[tuple[Site, Gemm]]:
    for site in context.graph:
        large = context.share(site) >= SMALL_SHARE and any(gemm.flops >= SMALL_GEMM_FLOPS for gemm in site.gemms)
        if site.op == "scaled_mm" or (site.op == "linear" and linears and large and not site.opaque):
            for gemm in dict.fromkeys(site.gemms):
                yield site, gemm
