"""G208: a variance whose result is stored in FP16."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import BATCH_MARGIN, of_batch, runs_in, where_in

FP16_DEVIATION = 255.9


class VarianceInHalf(GraphRule):
    """var or var_mean whose input and result are in FP16.

    ## What it does
    Reports variances that run in FP16 and whose input nothing bounds by 255.9. They are in none of autocast's lists,
    so they stay in FP16 under CUDA autocast.

    ## Why is this bad
    The variance of activations that deviate by 256 is over 65504, which is infinite in FP16: deviations of 1000 are
    not rare in a residual stream. In BF16 the range is that of FP32. std and std_mean take the root before they
    round to FP16, so their result fits.

    ## Example
    ```python
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
    ```

    ## Use instead
    ```python
    y = torch.nn.functional.layer_norm(x, x.shape[-1:])     # or x.float().var(...)
    ```

    ## Fix safety
    No automatic fix. `amptune tune` pins such an op in FP32.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G208"
    name = "variance-in-half"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a hand-written layer norm", model_file(
            """
            h = self.fc(x)
            v = h.var(-1, keepdim=True)  # <- G208
            return (h - h.mean(-1, keepdim=True)) * torch.rsqrt(v + 1e-5)
            """)),
    )  # fmt: skip
    VALID = (
        Example("cast up first", model_file("return self.fc(x).float().var(-1, keepdim=True)")),
        Example("layer norm", model_file("return F.layer_norm(self.fc(x), (64,))")),
        Example("a bounded input", model_file("return torch.tanh(torch.tanh(self.fc(x))).var(-1)")),
        Example("std, which squares in FP32", model_file("return self.fc(x).std(-1)")),
        Example("images of the batch, in FP16 by an einsum", model_file(
            "pixels = torch.einsum('nc->cn', x)\nreturn pixels.var(0) * self.fc(x).mean(-1)"),
            options={"evidence": True}),
        Example("BF16 alone", model_file("return self.fc(x).var(-1)"), options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each variance."""
        for site, half in context.sites_in_half("var", "var_mean"):
            runs = tuple(
                run
                for run in runs_in(half, site, Format.FP16)
                if run.ranges.operand(site, 0).magnitude > FP16_DEVIATION
            )
            if runs and of_batch(context, site).magnitude * BATCH_MARGIN > FP16_DEVIATION:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} runs in {where_in(runs, site)}: deviations over {FP16_DEVIATION:g} square to more than "
                    "65504, and the result is infinity; compute it in float32",
                    limit=FP16_DEVIATION,
                    format="fp16",
                )
