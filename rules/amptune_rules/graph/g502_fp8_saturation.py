"""G502: outlier channels that take the digits of all others under one FP8 scale for the whole tensor."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

SPREAD = 2.0**8
"""Largest channel over the median one from which the median channel lies near E4M3's subnormal numbers: with the
largest at 448, its maximum is under 2, and its ordinary values, some powers of two below, lose digits under 2**-6."""


class Fp8Saturation(GraphRule):
    """A linear whose weight or input has channels far larger than the rest, in a recipe with one scale per tensor.

    ## What it does
    For FP8 recipes with tensorwise scaling asked for by name: compares the largest channel of each weight (as
    make_model gives it) with the median one, and with `--calibrate` those of the inputs too.

    ## Why is this bad
    One scale maps the largest value to 448. Channels that are 256 times smaller come down to E4M3's subnormal numbers
    and lose their digits. Trained transformers have a few such channels in their activations.

    ## Example
    ```python
    convert_to_float8_training(model)
    ```

    ## Use instead
    ```python
    convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name("rowwise"))
    ```

    ## Fix safety
    Information for the choice of a recipe; `amptune tune` measures it.

    ## References
    torchao float8 recipes; LLM.int8() (NeurIPS 2022) on outlier features.
    """

    code = "G502"
    name = "fp8-saturation"
    severity = Severity.WARNING
    INVALID = (
        Example("a weight with an outlier channel", model_file(
            "return self.fc(x)  # <- G502",
            init="self.fc = nn.Linear(64, 64)\nwith torch.no_grad():\n    self.fc.weight[:, 3] *= 1000"),
            options={"gpus": ("h100",), "recipes": ("fp8-tensorwise",), "evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("ordinary weights", model_file("return self.fc(x)"),
                options={"gpus": ("h100",), "recipes": ("fp8-tensorwise",), "evidence": True}),
        Example("a scale for each row", model_file(
            "return self.fc(x)",
            init="self.fc = nn.Linear(64, 64)\nwith torch.no_grad():\n    self.fc.weight[:, 3] *= 1000"),
            options={"gpus": ("h100",), "recipes": ("fp8-rowwise",), "evidence": True}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each linear."""
        if not any(recipe.fp8 == "tensorwise" for recipe in context.recipes) or not context.recipes_named:
            return
        if not any(gpu.is_native(Format.FP8_E4M3) for gpu in context.tensor_core_gpus()):
            return
        for site in context.graph:
            what, spread = _widest(context, site)
            if spread >= SPREAD:
                yield context.finding(
                    self,
                    site,
                    f"the largest channel of the {what} is {spread:.3g} times the median one: under one scale for the "
                    "tensor most values fall to e4m3's subnormal numbers; use a rowwise recipe, or leave it in BF16",
                    spread=round(spread, 1),
                )


def _widest(context: GraphContext, site: Site) -> tuple[str, float]:
    """The operand of a linear whose channels differ most."""
    if site.op != "linear" or not site.is_module:
        return "", 0.0
    weights = context.evidence.assumptions.weights if context.evidence.assumptions else {}
    found = [("weight", weights[param.name].spread) for param in site.params if param.name in weights]
    observed = context.evidence.observed
    for source in site.sources[:1] if observed else ():
        if observed and source in observed.forward:
            found.append(("input", observed.forward[source].spread))
    return max(found, key=lambda pair: pair[1], default=("", 0.0))
