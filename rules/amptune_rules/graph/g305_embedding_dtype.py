"""G305: an embedding in FP32 that feeds a model in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class EmbeddingDtype(GraphRule):
    """The embedding table is FP32 while most of the other parameters are in 16 bits.

    ## What it does
    Compares the dtype of each embedding table with that of the majority of the model's parameters, as written.

    ## Why is this bad
    Its rows are promoted through the first additions, so the residual stream is FP32 up to the first product that
    casts: twice the bytes, or an error where a product does not cast.

    ## Example
    ```python
    model.to(torch.bfloat16); model.embed.float()
    ```

    ## Use instead
    ```python
    x = self.embed(ids).to(self.layers[0].weight.dtype)
    ```

    ## Fix safety
    Information: an FP32 table with FP32 updates may be wanted.

    ## References
    torch.nn.Embedding.
    """

    code = "G305"
    name = "embedding-dtype"
    severity = Severity.INFO
    INVALID = (
        Example("an FP32 table in a bf16 model", model_file(
            "return self.fc(self.table(x).to(torch.bfloat16))  # <- G305",
            init="self.table = nn.Embedding(10, 64)\nself.fc = nn.Linear(64, 64, dtype=torch.bfloat16)",
            batch="torch.randint(0, 10, (4, 8))")),
    )  # fmt: skip
    VALID = (
        Example("all FP32", model_file("return self.fc(self.table(x))",
                                       init="self.table = nn.Embedding(10, 64)\nself.fc = nn.Linear(64, 64)",
                                       batch="torch.randint(0, 10, (4, 8))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each table."""
        total, half = 0, 0
        tables = [site for site in context.graph if op_named(site.op).family is Family.EMBEDDING]
        for site in context.graph:
            if op_named(site.op).family is not Family.EMBEDDING:
                total += sum(param.meta.numel for param in site.params)
                half += sum(param.meta.numel for param in site.params if param.meta.dtype in HALF)
        if 2 * half <= total or not total:
            return
        for site in tables:
            if any(param.meta.dtype == "float32" for param in site.params):
                yield context.finding(
                    self,
                    site,
                    "this embedding is float32 in a model whose parameters are mostly in "
                    "16 bits: its output is cast, or promotes what it is added to",
                )
