"""G301: an op whose operands arrive in different dtypes, on which torch raises."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext, recipes_in, stopped
from amptune.core.ops import Autocast, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class DtypeMismatch(GraphRule):
    """An op that wants one dtype gets several.

    ## What it does
    Follows dtypes through the model as autocast would, and reports products, index_add, lerp and the like whose
    floating operands then differ and which autocast does not bring together. The backward of an autograd function
    without `custom_fwd` is tried with a 16-bit gradient, as it runs outside of autocast.

    ## Why is this bad
    torch raises: "expected scalar type Float but found BFloat16". Such models train in FP32 and stop at the first step
    under autocast.

    ## Example
    ```python
    out = torch.zeros(n, d, device=x.device)
    out.index_add_(0, index, self.fc(x))           # float32 and, under autocast, bfloat16
    ```

    ## Use instead
    ```python
    y = self.fc(x)
    out = torch.zeros(n, d, device=x.device, dtype=y.dtype)
    out.index_add_(0, index, y)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G301"
    name = "dtype-mismatch"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("index_add into float32", model_file(
            """
            out = torch.zeros(4, 64, device=x.device)
            index = torch.zeros(32, dtype=torch.int64, device=x.device)
            return out.index_add(0, index, self.fc(x))  # <- G301
            """)),
    )  # fmt: skip
    VALID = (
        Example("index_add into the same dtype", model_file(
            """
            y = self.fc(x)
            index = torch.zeros(32, dtype=torch.int64, device=x.device)
            return torch.zeros_like(y).index_add(0, index, y)
            """)),
        Example("a product, which autocast casts", model_file("return self.fc(x) @ torch.ones(64, 8)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op; an error where nothing on the way was assumed, else information."""
        for site in context.graph:
            runs = tuple(run for run in context.runs if run.dtypes[site.id].raises)
            runs = tuple(run for run in runs if op_named(site.op).cuda is not Autocast.ERROR)
            if runs:
                yield context.finding(
                    self,
                    site,
                    f"{runs[0].dtypes[site.id].raises} under {recipes_in(runs)}: cast one of them",
                    dtypes=list(runs[0].dtypes[site.id].inputs),
                    stops=stopped(runs),
                )
        yield from self._of_backwards(context)

    def _of_backwards(self, context: GraphContext) -> Iterable[Finding]:
        """Autograd functions whose products autocast casts down, and whose backward it does not reach."""
        for site in context.graph:
            runs = tuple(run for run in context.runs if run.recipe.autocast and run.device == "cuda")
            if context.train and runs and "mixes" in site.attrs and site.attrs.get("autocast") is not False:
                yield context.finding(
                    self,
                    site,
                    f"the backward of {site.op} runs outside of autocast, where its {site.attrs['mixes']} of a 16-bit "
                    f"gradient and a float32 parameter raises (under {recipes_in(runs)}): decorate its forward with "
                    "torch.amp.custom_fwd and its backward with custom_bwd",
                    stops=stopped(runs),
                )
