"""G212: a loss that is computed in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import where_in
from amptune_rules.graph.causes.rounded_outputs import rounded_outputs

LOSS = "loss_fn"


class LossDtype(GraphRule):
    """A loss, or the mean or sum that ends one, in 16 bits, or a prediction that reaches it rounded.

    ## What it does
    Reports loss functions, and reductions to a single number inside loss_fn, that run in 16 bits. CUDA autocast runs
    torch's losses in FP32, but not a mean written by hand. Predictions to which a literal was added in 16 bits are
    reported too, as to undo a normalisation, where the steps of the format at its size are over 1/64 of their spread.

    ## Why is this bad
    A loss of 2.3 in BF16 moves in steps of 0.016: the curve is a staircase. Its gradient is exact only as far as the
    rounded result allows, and in FP16 squared errors over 65504 are infinite.

    ## Example
    ```python
    loss = (output - target).abs().mean()             # output in bf16, target in bf16
    ```

    ## Use instead
    ```python
    loss = (output.float() - target.float()).abs().mean()
    ```

    ## Fix safety
    No automatic fix. A plan of `amptune tune` computes the loss in FP32.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G212"
    name = "loss-dtype"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a hand-written mean of 16-bit outputs", model_file(
            "return self.fc(x)", loss="output.abs().mean()  # <- G212")),
        Example("cross entropy of a bf16 model", model_file(
            "return self.fc(x)", cast=".bfloat16()", batch="torch.randn(32, 64).bfloat16()",
            loss="F.cross_entropy(output, output.detach().argmax(-1))  # <- G212")),
        Example("a temperature in kelvin", model_file(
            "return 285.0 + 12.0 * self.fc(x)  # <- G212",
            loss="F.mse_loss(output.float(), torch.full_like(output, 290.0))")),
    )  # fmt: skip
    VALID = (
        Example("a temperature that is shifted in FP32", model_file(
            "return 285.0 + 12.0 * self.fc(x).float()", loss="F.mse_loss(output, torch.full_like(output, 290.0))")),
        Example("a factor next to 1", model_file(
            "return 1.0 + 0.5 * self.fc(x)", loss="F.mse_loss(output.float(), torch.full_like(output, 1.2))")),
        Example("cross entropy under autocast", model_file(
            "return self.fc(x)", loss="F.cross_entropy(output, output.detach().argmax(-1))")),
        Example("cast up first", model_file("return self.fc(x)", loss="output.float().abs().mean()")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each loss op, and each prediction."""
        yield from rounded_outputs(self, context, LOSS)
        losses = [op for site in context.graph if _is_loss(op := site)]
        in_half = dict(context.sites_in_half(*{site.op for site in losses}))
        for site in losses:
            if site in in_half:
                yield context.finding(
                    self,
                    site,
                    f"the loss ({site.op}) is computed in {where_in(in_half[site], site)}: its result "
                    "keeps "
                    "3 digits; cast the outputs with .float() first",
                )


def _is_loss(site: Site) -> bool:
    if op_named(site.op).family is Family.LOSS:
        return True
    single = bool(site.outputs) and site.outputs[0].numel == 1
    is_count = bool(site.attrs.get("tested"))  # of what a mask keeps, of which G211 tells
    return (
        site.module == LOSS
        and site.op in ("mean", "sum", "var")
        and single
        and site.inputs[0].numel > 1
        and not is_count
    )
