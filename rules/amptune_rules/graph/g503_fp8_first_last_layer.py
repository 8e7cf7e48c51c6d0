"""G503: the first or last layer in an FP8 recipe."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.hardware import FP8_MULTIPLE
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

FEW = 4


class Fp8FirstLastLayer(GraphRule):
    """A recipe that puts the first and the last linear in FP8.

    ## What it does
    For FP8 recipes asked about by name, names the first and the last linear that they would convert, in models with
    more than four.

    ## Why is this bad
    The rounding of the first layer passes through the whole model, and the logits' gradient has the widest range of
    all: FP8 training tools leave both in BF16 by default, and their share of the time is mostly small.

    ## Example
    ```python
    convert_to_float8_training(model)
    ```

    ## Use instead
    ```python
    convert_to_float8_training(model, module_filter_fn=lambda m, name: name != "lm_head")
    ```

    ## Fix safety
    Information only; `amptune tune` measures it.

    ## References
    torchao float8 training; TransformerEngine user guide.
    """

    code = "G503"
    name = "fp8-first-last-layer"
    severity = Severity.INFO
    INVALID = (
        Example("six linears", model_file(
            """
            x = self.first(x)  # <- G503
            for layer in self.body:
                x = layer(x)
            return self.head(x)  # <- G503
            """, init="self.first = nn.Linear(64, 64)\n"
            "self.body = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))\nself.head = nn.Linear(64, 64)"),
            options={"gpus": ("h100",), "recipes": ("fp8-tensorwise",)}),
    )  # fmt: skip
    VALID = (
        Example("no FP8 asked for", model_file("return self.fc(x)"), options={"gpus": ("h100",)}),
        Example("two linears", model_file("return self.b(self.a(x))",
                                          init="self.a = nn.Linear(64, 64)\nself.b = nn.Linear(64, 64)"),
                options={"gpus": ("h100",), "recipes": ("fp8-tensorwise",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """At most two findings."""
        asked = context.recipes_named and any(recipe.fp8 for recipe in context.recipes)
        if not asked or not any(gpu.is_native(Format.FP8_E4M3) for gpu in context.tensor_core_gpus()):
            return
        linears = [site for site in context.graph if _converts(site)]
        if len(linears) <= FEW:
            return
        for which, site in (("first", linears[0]), ("last", linears[-1])):
            yield context.finding(
                self,
                site,
                f"this is the {which} linear that the FP8 recipe converts: leave it in BF16 unless measured otherwise",
            )


def _converts(site: Site) -> bool:
    fits = all(gemm.k % FP8_MULTIPLE == 0 and gemm.n % FP8_MULTIPLE == 0 for gemm in site.gemms)
    return site.op == "linear" and site.is_module and bool(site.gemms) and fits and not site.opaque
