"""G103: the number of rows of the large matrix products (batch x sequence) is not a multiple of 8."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import LARGE_SHARE, GraphContext
from amptune.core.hardware import multiple_for, padded
from amptune.core.ops import Family
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._alignment import merged, rows_of_lines
from amptune_rules.graph._examples import model_file


class GemmMMisaligned(GraphRule):
    """The rows M of the model's matrix products (batch times sequence, folded) are not a multiple of 8.

    ## What it does
    Reports each M once for the model, at the first product that has it, when those products are a large part of the
    FLOPs.

    ## Why is this bad
    M is the reduction length of the weight gradient. It never is the row length of an operand in memory, so it
    matters least of the three dimensions: the last piece of the reduction is padded with zeros by the kernel.

    ## Example
    ```python
    batch = tokenizer(texts, padding=True)                          # 4 x 333 = 1332 rows
    ```

    ## Use instead
    ```python
    batch = tokenizer(texts, padding=True, pad_to_multiple_of=8)    # 4 x 336 = 1344 rows
    ```

    ## Fix safety
    No automatic fix: the batch is the data loader's.

    ## References
    NVIDIA, Matrix Multiplication Background User's Guide.
    """

    code = "G103"
    name = "gemm-m-misaligned"
    severity = Severity.INFO
    INVALID = (
        Example("an odd number of tokens", model_file("return self.fc(x)  # <- G103",
                                                      init="self.fc = nn.Linear(256, 256)",
                                                      batch="torch.randn(3, 333, 256)")),
    )  # fmt: skip
    VALID = (
        Example("tokens padded to a multiple of 8", model_file("return self.fc(x)",
                                                               init="self.fc = nn.Linear(256, 256)",
                                                               batch="torch.randn(3, 336, 256)")),
        Example("an odd sequence in an even batch", model_file("return self.fc(x)",
                                                               init="self.fc = nn.Linear(256, 256)",
                                                               batch="torch.randn(8, 333, 256)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such M."""
        multiple = multiple_for(Format.BF16)
        if not context.train or not context.tensor_core_gpus():
            return
        first: dict[int, Site] = {}
        flops: dict[int, int] = {}
        for site, gemm in context.large_gemms(Family.GEMM):
            if gemm.m % multiple and gemm.batch == 1 and not context.stays_wide(site):
                first.setdefault(gemm.m, site)
                flops[gemm.m] = flops.get(gemm.m, 0) + gemm.flops
        for ms, site in rows_of_lines(first):
            share = sum(flops[m] for m in ms) / max(context.graph.flops, 1)
            if share >= LARGE_SHARE:
                fits = [padded(m, multiple) for m in ms]
                rows = (
                    f"M = {ms[0]} rows (batch x sequence) is" if len(ms) == 1 else f"M = {ms[0]} to {ms[-1]} rows are"
                )
                mend = (
                    merged(site, ms[0]) or f"{fits[0]} rows would be aligned"
                    if len(ms) == 1
                    else "pad what each site gets"
                )
                yield context.finding(
                    self,
                    site,
                    f"{rows} not a multiple of {multiple}: the weight gradients reduce over them; {mend} (matters "
                    "least of the three dimensions)",
                    dimension="M",
                    value=ms[0],
                    padded=fits[0],
                    waste=round(fits[0] / ms[0] - 1, 6),
                    flops_share=round(share, 4),
                )
