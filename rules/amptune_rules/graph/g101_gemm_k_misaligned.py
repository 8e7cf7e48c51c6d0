"""G101: the reduction length of a matrix product is not a multiple of 8."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._alignment import linear_name, misaligned, notes, severity_of
from amptune_rules.graph._examples import model_file

_WIDE = "self.fc = nn.Linear(1023, 1024)"


class GemmKMisaligned(GraphRule):
    """The reduction length K of a matrix product is not a multiple of 8 elements (16 bytes in 16-bit formats).

    ## What it does
    Looks at K of every linear, matmul, bmm, addmm, einsum and RNN that is a noticeable part of the model's FLOPs.

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
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each shape of each site."""
        for found in misaligned(context, "k"):
            yield context.finding(
                self,
                found.site,
                f"{linear_name(found.site, 'k')} K = {found.value} is not a multiple of 8, so 16-bit rows are not "
                f"16-byte aligned: pad to {found.padded} (+{found.waste:.1%} work){notes(context, found)}",
                severity=severity_of(context, found),
                dimension="K",
                value=found.value,
                padded=found.padded,
                waste=round(found.waste, 6),
                flops_share=round(context.share(found.site), 4),
                saves_ms=dict(found.saves_ms),
            )
