"""G101: the reduction length of a matrix product is not a multiple of 8."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._alignment import Misaligned, linear_name, measures, misaligned, notes, padding, severity_of
from amptune_rules.graph._examples import model_file

_WIDE = "self.fc = nn.Linear(1023, 1024)"


class GemmKMisaligned(GraphRule):
    """The reduction length K of a matrix product is not a multiple of 8 elements (16 bytes in 16-bit formats).

    ## What it does
    Looks at K of every linear, matmul, bmm, addmm, einsum and RNN that is a noticeable part of the model's FLOPs, or
    whose padding saves a noticeable part of the predicted step.

    ## Why is this bad
    Rows of K 16-bit elements then start at addresses that are not multiples of 16 bytes. The fast kernels load 16
    bytes at a time (on Hopper through the tensor memory accelerator, which requires it); what is left are kernels
    with narrow loads at a fraction of the rate. Since cuBLAS 11 the tensor cores are still used, only badly.

    ## Example
    ```python
    self.fc = nn.Linear(1023, 1024)
    ```

    ## Use instead
    ```python
    self.fc = nn.Linear(1024, 1024)   # or concatenate one constant feature
    ```

    ## Fix safety
    No automatic fix: the size is part of the model and of its checkpoints. `amptune tune` pads at compute time.

    ## References
    NVIDIA, Matrix Multiplication Background User's Guide; NVIDIA, cuBLAS documentation, Tensor Core Usage.
    """

    code = "G101"
    name = "gemm-k-misaligned"
    severity = Severity.WARNING
    INVALID = (
        Example("in_features of 1023", model_file("return self.fc(x)  # <- G101", init=_WIDE,
                                                  batch="torch.randn(512, 1023)")),
        Example("hand-written attention over 197 tokens", model_file(
            """
            q, k, v = x, x, x
            scores = (q @ k.transpose(-2, -1)).softmax(-1)
            return scores @ v  # <- G101
            """, batch="torch.randn(64, 197, 64, requires_grad=True)")),
    )  # fmt: skip
    VALID = (
        Example("in_features of 1024", model_file("return self.fc(x)", init="self.fc = nn.Linear(1024, 1024)",
                                                  batch="torch.randn(512, 1024)")),
        Example("a product too small to matter", model_file("return self.fc(x)", init="self.fc = nn.Linear(63, 64)",
                                                            batch="torch.randn(8, 63)")),
        Example("a rounding error of the model's FLOPs", model_file(
            "return self.big(x)[:, :8] + self.small(x[:, :1001])",
            init="self.big = nn.Linear(8192, 8192)\nself.small = nn.Linear(1001, 8)",
            batch="torch.randn(512, 8192)")),
        Example("a product that stays in FP32", model_file(
            """
            with torch.autocast(x.device.type, enabled=False):
                return self.fc(x)
            """, init="self.fc = nn.Linear(1001, 1024)", batch="torch.randn(512, 1001)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each shape of each site; for an RNN one of all its layers, which have a size together."""
        together: dict[str, list[Misaligned]] = {}
        for found in misaligned(context, "k"):
            recurrent = op_named(found.site.op).family is Family.RNN
            key = found.site.id if recurrent else f"{found.site.id} {found.gemm}"
            together.setdefault(key, []).append(found)
        for same in together.values():
            yield self._finding(context, same) if len(same) == 1 else self._of_layers(context, same)

    def _finding(self, context: GraphContext, same: list[Misaligned]) -> Finding:
        (found,) = same
        return context.finding(
            self,
            found.site,
            f"{linear_name(found.site, 'k')} K = {found.value} is not a multiple of 8, so 16-bit rows are not "
            f"16-byte aligned: {padding(context, found)}{notes(context, found)}",
            severity=severity_of(context, found),
            dimension="K",
            **measures(context, found),
        )

    def _of_layers(self, context: GraphContext, same: list[Misaligned]) -> Finding:
        first = same[0]
        sizes = dict.fromkeys((found.value, found.padded) for found in same)
        listed = " and ".join(f"{value} (pad to {padded})" for value, padded in sizes)
        return context.finding(
            self,
            first.site,
            f"{linear_name(first.site, 'k')} K = {listed}: not a multiple of 8, so 16-bit rows are not 16-byte aligned",
            severity=max(severity_of(context, found) for found in same),
            dimension="K",
            value=[value for value, _ in sizes],
            padded=[padded for _, padded in sizes],
            waste=round(max(found.waste for found in same), 6),
            flops_share=round(context.share(first.site), 4),
            saves_ms={gpu: sum(found.saves_ms[gpu] for found in same) for gpu in first.saves_ms},
        )
