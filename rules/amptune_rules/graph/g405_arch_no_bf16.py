"""G405: BF16 on a GPU that emulates it."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph_context import GraphContext, listed
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class ArchNoBf16(GraphRule):
    """A BF16 recipe on a GPU without BF16 units.

    ## What it does
    Compares the recipes asked about with the GPUs asked about. One finding lists them all.

    ## Why is this bad
    Below compute capability 8.0 BF16 products are emulated, at less than half of the FP32 rate, and cuDNN has no BF16
    convolutions. torch.cuda.is_bf16_supported() answers True all the same: ask with including_emulation=False.

    ## Example
    ```python
    with torch.autocast("cuda", dtype=torch.bfloat16): ...      # on a V100 or T4
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", dtype=torch.float16): ...       # with torch.amp.GradScaler
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.cuda.is_bf16_supported; pytorch pull request 148322.
    """

    code = "G405"
    name = "arch-no-bf16"
    severity = Severity.WARNING
    INVALID = (
        Example("a V100", "# <- G405\n" + model_file("return self.fc(x)"), options={"gpus": ("v100",)}),
    )  # fmt: skip
    VALID = (
        Example("an A100", model_file("return self.fc(x)"), options={"gpus": ("a100",)}),
        Example("FP16 on a V100", model_file("return self.fc(x)"),
                options={"gpus": ("v100",), "recipes": ("autocast-fp16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding that lists the GPUs."""
        recipes = [recipe.name for recipe in context.recipes if recipe.half is Format.BF16 and not recipe.fp8]
        without = [gpu for gpu in context.tensor_core_gpus() if not gpu.is_native(Format.BF16)]
        if recipes and without:
            yield context.finding(
                self,
                None,
                f"no BF16 units on {listed(without)}: {' and '.join(recipes)} is emulated below the FP32 rate; use "
                "FP16 "
                "with a GradScaler there",
                severity=Severity.WARNING if context.gpus_named else Severity.INFO,
                gpus=[gpu.key for gpu in without],
            )
