"""G210: attention scores that are scaled after the product, or not at all."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import arity
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import runs_in

_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")
_BETWEEN = ("add", "masked_fill", "where", "div", "mul", "sub", "clamp")
WIDE_HEAD = 32


class UnscaledAttentionLogits(GraphRule):
    """A product of queries and keys that reaches a softmax in FP16 without having been scaled before the product.

    ## What it does
    Follows each batched product in FP16 to a softmax, and looks for a multiplication or division by a number on the
    way to the product (good) or after it (too late for FP16's range).

    ## Why is this bad
    The product of two vectors of 128 elements of size 25 is 80000, over FP16's 65504: infinite before the scale
    brings it down. T5 leaves the scale out on purpose (it is folded into the initial weights).

    ## Example
    ```python
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(d)
    ```

    ## Use instead
    ```python
    scores = (q / math.sqrt(d)) @ k.transpose(-2, -1)     # or F.scaled_dot_product_attention
    ```

    ## Fix safety
    Information only.

    ## References
    Megatron-LM's apply_query_key_layer_scaling; transformers issue 9295.
    """

    code = "G210"
    name = "unscaled-attention-logits"
    severity = Severity.INFO
    by_calls = True  # a helper that lays out queries, keys and values is one site of three calls
    INVALID = (
        Example("scaled after the product", model_file(
            """
            q = self.fc(x)
            return torch.softmax(q @ q.transpose(-2, -1) / 8.0, -1) @ q  # <- G210
            """, batch="torch.randn(2, 32, 64)")),
        Example("made larger before it", model_file(
            """
            q = self.fc(x) * 10
            return torch.softmax(q @ q.transpose(-2, -1), -1) @ q  # <- G210
            """, batch="torch.randn(2, 32, 64)")),
    )  # fmt: skip
    VALID = (
        Example("scaled before the product", model_file(
            """
            q = self.fc(x) / 8.0
            return torch.softmax(q @ q.transpose(-2, -1), -1) @ q
            """, batch="torch.randn(2, 32, 64)")),
        Example("the fused attention", model_file(
            """
            q = self.fc(x)
            return F.scaled_dot_product_attention(q, q, q)
            """, batch="torch.randn(2, 4, 32, 64)")),
        Example("landmarks of scaled queries and keys", model_file(
            """
            q = self.fc(x) / 8.0
            landmarks = q.reshape(2, 8, 4, 64).mean(-2)
            return torch.softmax(landmarks @ landmarks.transpose(-2, -1), -1)
            """, batch="torch.randn(2, 32, 64)")),
        Example("BF16 alone", model_file(
            """
            q = self.fc(x)
            return torch.softmax(q @ q.transpose(-2, -1) / 8.0, -1) @ q
            """, batch="torch.randn(2, 32, 64)"), options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such product."""
        for site, half in context.sites_in_half(*_PRODUCTS):
            runs = runs_in(half, site, Format.FP16)
            head = max((gemm.k for gemm in site.gemms), default=0)
            if runs and head >= WIDE_HEAD and _reaches_softmax(context, site) and not _is_scaled(runs[0], site):
                yield context.finding(
                    self,
                    site,
                    f"a product over {head} elements reaches a softmax in fp16 (under {recipes_in(runs)}) and is not "
                    f"scaled before it: vectors of size {(Format.FP16.max / head) ** 0.5:.0f} already give 65504; "
                    "scale the queries first",
                    count=head,
                    format="fp16",
                )


_AVERAGES = ("mean", "avg_pool1d", "avg_pool2d", "dropout")
"""Ops whose results are as large as what they read: the landmarks of queries and keys."""


def _reaches_softmax(context: GraphContext, site: Site, depth: int = 4) -> bool:
    for consumer in context.graph.consumers(site.id):
        if consumer.op in ("softmax", "log_softmax"):
            return True
        if depth and consumer.op in _BETWEEN and _reaches_softmax(context, consumer, depth - 1):
            return True
    return False


def _is_scaled(run: Run, site: Site) -> bool:
    """Whether an operand was multiplied by a number, normalised or bounded before, or is a mean of what was."""
    for index in range(arity(site)):
        root = run.ranges.root(site, index)
        while root is not None and root.op in _AVERAGES:
            root = run.ranges.root(root)
        if root is None:
            continue
        if root.op in ("mul", "div") and _makes_smaller(root):
            return True
        if root.op in ("normalize", "layer_norm", "rms_norm", "softmax", "tanh", "sigmoid"):
            return True
    return False


def _makes_smaller(site: Site) -> bool:
    """Whether a factor is below 1, or no literal: a parameter or a tensor that holds the scale."""
    scalars = site.attrs.get("scalars") or {}
    if not scalars:
        return bool(site.params) or len(site.inputs) > 1
    ((place, value),) = list(scalars.items())[:1]
    return 0 < abs(float(value)) < 1 if site.op == "mul" else place == 1 and abs(float(value)) > 1
