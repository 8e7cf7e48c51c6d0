"""G303: a large matrix product that stays in FP32 under autocast."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import LARGE_SHARE, GraphContext, recipes_in
from amptune.core.ops import Autocast, Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class Fp32Island(GraphRule):
    """A matrix product that autocast leaves in FP32 and that is a noticeable part of the FLOPs.

    ## What it does
    Reports products that run in FP32 under an autocast recipe: bilinear, tensordot and dot promote to their widest
    operand, a region with autocast switched off keeps what it is given, and so do products inside of an autograd
    function whose `custom_fwd` casts its inputs to FP32.

    ## Why is this bad
    FP32 products run on the vector units, at a fifteenth of the BF16 rate on an H100 (an eighth of TF32's).

    ## Example
    ```python
    y = torch.tensordot(self.fc(x), self.weight, dims=1)
    ```

    ## Use instead
    ```python
    y = self.fc(x) @ self.weight
    ```

    ## Fix safety
    Information: the FP32 may be wanted.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G303"
    name = "fp32-island"
    severity = Severity.INFO
    INVALID = (
        Example("tensordot with a parameter", model_file(
            "return torch.tensordot(self.fc(x), self.w, dims=1)  # <- G303",
            init="self.fc = nn.Linear(64, 512)\nself.w = nn.Parameter(torch.randn(512, 512))")),
    )  # fmt: skip
    VALID = (
        Example("matmul with a parameter", model_file(
            "return self.fc(x) @ self.w",
            init="self.fc = nn.Linear(64, 512)\nself.w = nn.Parameter(torch.randn(512, 512))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each product."""
        for site in context.graph:
            is_product = op_named(site.op).family in (Family.GEMM, Family.CONV) or "cast_inputs" in site.attrs
            if not is_product or context.share_of_line(site) < LARGE_SHARE:
                continue
            runs = tuple(r for r in context.runs if r.recipe.autocast and r.dtypes[site.id].compute == "float32")
            if runs:
                reason = _reason(site)
                yield context.finding(
                    self,
                    site,
                    f"{site.op} with {context.share_of_line(site):.0%} of the FLOPs stays in float32 under "
                    f"{recipes_in(runs)}: {reason}",
                    flops_share=round(context.share_of_line(site), 4),
                )


def _reason(site: Site) -> str:
    if "cast_inputs" in site.attrs:
        return "its custom_fwd casts all inputs to float32"
    if site.attrs.get("autocast") is False:
        return "it stands in a region with autocast off"
    if op_named(site.op).cuda is Autocast.PROMOTE:
        return f"{site.op} promotes to its widest operand"
    reason = f"{site.op} is in none of autocast's lists and follows its operands"
    if site.op == "grouped_mm":  # see amptune.analyze.stepcost.kernels.Groups
        reason += "; in float32 torch multiplies group by group, and waits for the GPU to learn where they end"
    return reason
