"""G402: an op whose forward runs in a format and whose backward does not."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.op_support import lacks_kernel, tried_with
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class BackwardUnsupported(GraphRule):
    """An op with a 16-bit kernel for its forward but none for its backward.

    ## What it does
    Looks up each op that runs in 16 bits and needs a gradient in the table generated from torch's operator tests.

    ## Why is this bad
    The forward passes every smoke test, and the first backward raises.

    ## Example
    ```python
    nn.EmbeddingBag(1000, 64, dtype=torch.bfloat16)      # trained on CUDA
    ```

    ## Use instead
    ```python
    nn.EmbeddingBag(1000, 64)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    amptune/data/op_support.json and its generator tests/benchmarks/op_support.py.
    """

    code = "G402"
    name = "backward-unsupported"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("embedding_bag in bf16", model_file(
            "return self.bag(x)  # <- G402", init="self.bag = nn.EmbeddingBag(10, 64, dtype=torch.bfloat16)",
            batch="torch.randint(0, 10, (4, 8))")),
    )  # fmt: skip
    VALID = (
        Example("embedding_bag in fp32", model_file(
            "return self.bag(x)", init="self.bag = nn.EmbeddingBag(10, 64)", batch="torch.randint(0, 10, (4, 8))")),
        Example("without a backward", model_file(
            "return self.bag(x)", init="self.bag = nn.EmbeddingBag(10, 64, dtype=torch.bfloat16)",
            batch="torch.randint(0, 10, (4, 8))"), options={"train": False}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op."""
        if not context.train:
            return
        for site in context.graph:
            runs = tuple(run for run in context.runs if _lacks_backward(run, site))
            if runs:
                dtype = runs[0].dtypes[site.id].compute
                yield context.finding(
                    self,
                    site,
                    f"the backward of {site.op} has no {dtype} kernel on {runs[0].device} "
                    f"({tried_with(runs[0].device, context.torch_version)}) and raises under {recipes_in(runs)}: "
                    "keep it in float32",
                    stops=stopped(runs),
                )


def _lacks_backward(run: Run, site: Site) -> bool:
    compute = run.dtypes[site.id].compute
    if compute not in HALF or not any(
        tensor.requires_grad for tensor in (*site.inputs, *(p.meta for p in site.params))
    ):
        return False
    return lacks_kernel(site.op, compute, run.device, "backward") and not lacks_kernel(site.op, compute, run.device)
