"""G102: the output width of a matrix product is not a multiple of 8."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import OUTPUT, Site
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._alignment import linear_name, measures, misaligned, notes, padding, severity_of
from amptune_rules.graph._examples import model_file

FEW_CLASSES = 512


class GemmNMisaligned(GraphRule):
    """The output width N of a matrix product is not a multiple of 8 elements (16 bytes in 16-bit formats).

    ## What it does
    Looks at N of every linear, matmul, bmm, addmm, einsum and RNN that is a noticeable part of the model's FLOPs, or
    whose padding saves a noticeable part of the predicted step; vocabulary heads above all.

    ## Why is this bad
    The rows of the output, and of its gradient in both backward products, then start at addresses that are not
    multiples of 16 bytes, and all three products fall back to kernels with narrow loads. On an H100 a GPT-2 step
    with a vocabulary of 50257 takes 1.5 times as long as with 50304.

    ## Example
    ```python
    self.head = nn.Linear(768, 50257)
    ```

    ## Use instead
    ```python
    self.head = nn.Linear(768, 50304)   # the next multiple of 64; the extra logits are never a target
    ```

    ## Fix safety
    No automatic fix: the size is part of the model and of its checkpoints. `amptune tune` pads at compute time and
    slices the logits back, with unchanged parameters.

    ## References
    NVIDIA, Matrix Multiplication Background User's Guide; tests/benchmarks/reports for the measured step times.
    """

    code = "G102"
    name = "gemm-n-misaligned"
    severity = Severity.WARNING
    INVALID = (
        Example("GPT-2's vocabulary", model_file("return self.head(x)  # <- G102",
                                                 init="self.head = nn.Linear(768, 50257)",
                                                 batch="torch.randn(256, 768)",
                                                 loss="F.cross_entropy(output, output.detach().argmax(-1))")),
        Example("an odd hidden size", model_file("return self.down(self.up(x)[:, :1000])  # <- G102",
                                                 init="self.up = nn.Linear(512, 1001)\nself.down = nn.Linear(1000, 8)",
                                                 batch="torch.randn(512, 512)")),
    )  # fmt: skip
    VALID = (
        Example("a padded vocabulary", model_file("return self.head(x)", init="self.head = nn.Linear(768, 50304)",
                                                  batch="torch.randn(256, 768)")),
        Example("a head of ten classes behind a large body", model_file(
            "return self.head(self.body(x))", init="self.body = nn.Linear(2048, 2048)\nself.head = nn.Linear(2048, 10)",
            batch="torch.randn(512, 2048)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each shape of each site; a head of few classes is information at most."""
        for found in misaligned(context, "n"):
            few = found.value <= FEW_CLASSES and _is_head(context, found.site)
            yield context.finding(
                self,
                found.site,
                f"{linear_name(found.site, 'n')} N = {found.value} is not a multiple of 8, so 16-bit rows of the "
                f"output and its gradient are not 16-byte aligned: {padding(context, found)}"
                f"{notes(context, found)}",
                severity=Severity.INFO if few else severity_of(context, found),
                dimension="N",
                **measures(context, found),
            )


def _is_head(context: GraphContext, site: Site) -> bool:
    """Whether no further matrix product reads the output: what follows is a loss, a softmax or the end."""
    waiting, seen = [site.id], {site.id}
    while waiting:
        for name in context.graph.graph.successors(waiting.pop()):
            if name == OUTPUT or name in seen:
                continue
            if op_named(context.graph[name].op).family in (Family.GEMM, Family.CONV, Family.RNN, Family.ATTENTION):
                return False
            seen.add(name)
            waiting.append(name)
    return True
