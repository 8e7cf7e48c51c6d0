"""G406: FP8 on a GPU without FP8 products."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph_context import GraphContext, listed
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class ArchNoFp8(GraphRule):
    """An FP8 recipe, or a model with FP8 products, on a GPU without them.

    ## What it does
    Compares the GPUs asked about with the FP8 recipes and with scaled_mm calls of the model. An error where the model
    calls scaled_mm or an FP8 recipe was asked for by name; otherwise information that the recipe is left out.

    ## Why is this bad
    FP8 products need compute capability 8.9 (Ada, Hopper, Blackwell) or AMD gfx94x, gfx95x, gfx12xx: elsewhere
    scaled_mm raises.

    ## Example
    ```sh
    amptune analyze model.py --gpu a100 --recipe fp8-tensorwise
    ```

    ## Use instead
    ```sh
    amptune analyze model.py --gpu a100 --recipe autocast-bf16
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.nn.functional.scaled_mm; torch/testing/_internal/common_cuda.py, PLATFORM_SUPPORTS_FP8.
    """

    code = "G406"
    name = "arch-no-fp8"
    severity = Severity.ERROR
    INVALID = (
        Example("FP8 asked for on an A100", "# <- G406\n" + model_file("return self.fc(x)"),
                options={"gpus": ("a100",), "recipes": ("fp8-tensorwise",)}),
    )  # fmt: skip
    VALID = (
        Example("an H100", model_file("return self.fc(x)"), options={"gpus": ("h100",)}),
        Example("no FP8 recipe", model_file("return self.fc(x)"),
                options={"gpus": ("a100",), "recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding that lists the GPUs."""
        without = [gpu for gpu in context.tensor_core_gpus() if not gpu.is_native(Format.FP8_E4M3)]
        recipes = [recipe.name for recipe in context.recipes if recipe.fp8]
        product = next((site for site in context.graph if site.op == "scaled_mm"), None)
        if not without or (product is None and not recipes):
            return
        keys = [gpu.key for gpu in without]
        start = f"no FP8 products on {listed(without)}"
        if product is not None:
            yield context.finding(self, product, f"{start}: scaled_mm raises there", gpus=keys)
        elif context.recipes_named:
            effect = f"{' and '.join(recipes)} cannot run there; use a 16-bit recipe"
            yield context.finding(self, None, f"{start}: {effect}", gpus=keys)
        elif context.gpus_named:
            effect = "the FP8 recipes are left out"
            yield context.finding(self, None, f"{start}: {effect}", severity=Severity.INFO, gpus=keys)
