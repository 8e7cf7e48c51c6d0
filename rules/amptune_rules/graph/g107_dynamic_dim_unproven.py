"""G107: a dimension that changes from batch to batch and that nothing keeps a multiple of 8."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

MULTIPLE = 8
_BATCHES = """

def train_batches():
    for length in {lengths}:
        yield torch.randn({shape}), None
"""


class DynamicDimUnproven(GraphRule):
    """A dimension of the batch changes from batch to batch, and not in multiples of 8.

    ## What it does
    Compares the shapes of the first batches of `train_batches`, and reads what `torch._dynamo.mark_dynamic` marks in
    `make_batch`. A dimension whose sizes are all multiples of 8 is left alone.

    ## Why is this bad
    Rows of matrix products are batch times sequence, and attention multiplies over the sequence itself: a length of 57
    leaves the last tile of each product partly empty, and its 16-bit rows off 16 bytes, in every layer. Each new size
    is a new graph under torch.compile as well.

    ## Example
    ```python
    collate = DataCollatorWithPadding(tokenizer)
    ```

    ## Use instead
    ```python
    collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    ```

    ## Fix safety
    Information only.

    ## References
    NVIDIA Matrix Multiplication Background guide; torch.export documentation on Dim.
    """

    code = "G107"
    name = "dynamic-dim-unproven"
    severity = Severity.INFO
    INVALID = (
        Example("lengths as they come", model_file("return self.fc(x)  # <- G107", batch="torch.randn(4, 57, 64)")
                + _BATCHES.format(lengths="(57, 43, 64)", shape="4, length, 64"), options={"evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("lengths in multiples of 8", model_file("return self.fc(x)", batch="torch.randn(4, 56, 64)")
                + _BATCHES.format(lengths="(56, 48, 64)", shape="4, length, 64"), options={"evidence": True}),
        Example("one length", model_file("return self.fc(x)", batch="torch.randn(4, 57, 64)")
                + _BATCHES.format(lengths="(57, 57)", shape="4, length, 64"), options={"evidence": True}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each dimension, at the first matrix product that has it."""
        if not context.tensor_core_gpus() or not any(recipe.half for recipe in context.recipes):
            return
        for each in context.evidence.dynamic:
            odd = [size for size in each.sizes if size % MULTIPLE]
            site = _first_with(context, each.sizes)
            if odd and site is not None:
                shown = ", ".join(map(str, each.sizes))
                yield context.finding(
                    self,
                    site,
                    f"dimension {each.axis} of {each.name} changes from batch to batch ({shown} seen), and {odd[0]} is "
                    f"no multiple of {MULTIPLE}: pad batches to one (pad_to_multiple_of=8), or bucket them by length",
                    sizes=list(each.sizes),
                )


def _first_with(context: GraphContext, sizes: tuple[int, ...]) -> Site | None:
    """The first matrix product or attention whose input has such a dimension."""
    for site in context.graph:
        multiplies = op_named(site.op).family in (Family.GEMM, Family.ATTENTION, Family.RNN, Family.CONV)
        if multiplies and any(extent in sizes for tensor in site.inputs for extent in tensor.shape):
            return site
    return None
