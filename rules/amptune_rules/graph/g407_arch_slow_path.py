"""G407: a format that the GPU runs, but not at the rate that its name suggests."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph_context import GraphContext, listed
from amptune.core.hardware import Gpu
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

FEW_TIMES = 1.2


class ArchSlowPath(GraphRule):
    """TF32 where it is nothing but FP32, and FP64 in a model for a GPU without fast FP64.

    ## What it does
    Reports the tf32 recipe on GPUs below compute capability 8.0 and on those whose TF32 rate is that of their vector
    units, and FP64 in the model.

    ## Why is this bad
    The flag is accepted and changes nothing. FP64 runs at a 32nd or 64th of the FP32 rate outside the data centre GPUs,
    and autocast leaves it alone.

    ## Example
    ```python
    torch.set_float32_matmul_precision("high")      # on a V100
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", dtype=torch.float16): ...
    ```

    ## Fix safety
    Information only.

    ## References
    PyTorch notes on TensorFloat-32; NVIDIA Ampere GA102 whitepaper.
    """

    code = "G407"
    name = "arch-slow-path"
    severity = Severity.INFO
    INVALID = (
        Example("TF32 on a V100", "# <- G407\n" + model_file("return self.fc(x)"), options={"gpus": ("v100",)}),
    )  # fmt: skip
    VALID = (
        Example("TF32 on an A100", model_file("return self.fc(x)"), options={"gpus": ("a100",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for the GPUs on which TF32 is nothing, and one for FP64 in the model."""
        slow = [gpu for gpu in context.tensor_core_gpus() if _is_tf32_slow(gpu)]
        if slow and context.gpus_named and any(recipe.is_tf32 for recipe in context.recipes):
            yield context.finding(
                self,
                None,
                f"tf32 gains nothing on {listed(slow)}: no TF32 units, or with FP32 accumulation no faster than FP32",
                gpus=[gpu.key for gpu in slow],
            )
        double = next((s for s in context.graph if s.flops and any(t.dtype == "float64" for t in s.inputs)), None)
        if double is not None:
            yield context.finding(
                self,
                double,
                f"{double.op} runs in float64, which autocast leaves alone and most GPUs run at a 32nd of the float32 "
                "rate or less: the predicted steps take the float32 rate for it",
            )


def _is_tf32_slow(gpu: Gpu) -> bool:
    return not gpu.is_native(Format.TF32) or gpu.peaks[Format.TF32] < FEW_TIMES * gpu.peaks[Format.FP32]
