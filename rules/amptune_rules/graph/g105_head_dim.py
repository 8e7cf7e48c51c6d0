"""G105: the head dimension of an attention keeps it from the fused kernels."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.hardware import padded
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

FLASH_MULTIPLE = 8
FLASH_LIMIT = 256


class HeadDim(GraphRule):
    """An attention whose head dimension is not a multiple of 8, or is over 256.

    ## What it does
    Looks at the last dimension of the queries of every scaled_dot_product_attention and nn.MultiheadAttention.

    ## Why is this bad
    The flash kernel takes head dimensions up to 256. One that is no multiple of 8 is padded by torch before the kernel
    (a copy of queries, keys and values); one over 256 falls back to the math path, which writes the whole score matrix.

    ## Example
    ```python
    nn.MultiheadAttention(embed_dim=780, num_heads=12)   # 65 for each head
    ```

    ## Use instead
    ```python
    nn.MultiheadAttention(embed_dim=768, num_heads=12)   # 64 for each head
    ```

    ## Fix safety
    No automatic fix: the size is part of the model.

    ## References
    torch.nn.functional.scaled_dot_product_attention; aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """

    code = "G105"
    name = "head-dim"
    severity = Severity.WARNING
    INVALID = (
        Example("65 for each head", model_file("return F.scaled_dot_product_attention(x, x, x)  # <- G105",
                                               batch="torch.randn(2, 4, 128, 65, requires_grad=True)")),
        Example("nn.MultiheadAttention with 65 for each head", model_file(
            "return self.attention(x, x, x)[0]  # <- G105", init="self.attention = nn.MultiheadAttention(260, 4)",
            batch="torch.randn(64, 8, 260)")),
        Example("320 for each head", model_file("return F.scaled_dot_product_attention(x, x, x)  # <- G105",
                                                batch="torch.randn(2, 4, 128, 320, requires_grad=True)")),
    )  # fmt: skip
    VALID = (
        Example("nn.MultiheadAttention with 64 for each head", model_file(
            "return self.attention(x, x, x)[0]", init="self.attention = nn.MultiheadAttention(256, 4)",
            batch="torch.randn(64, 8, 256)")),
        Example("64 for each head", model_file("return F.scaled_dot_product_attention(x, x, x)",
                                               batch="torch.randn(2, 4, 128, 64, requires_grad=True)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each attention."""
        if not context.tensor_core_gpus():
            return
        for site in context.graph:
            size = head_dim(site)
            by_products = site.op == "multi_head_attention" and not site.attrs.get("fused")
            if by_products and size % FLASH_MULTIPLE:
                problem = (
                    f"is not a multiple of {FLASH_MULTIPLE}: the products of queries, keys and values, which run "
                    "one by one as the weights are returned, have rows that are not 16-byte aligned"
                )
            elif by_products:
                continue  # there is no fused kernel to miss
            elif size > FLASH_LIMIT:
                problem = f"is over {FLASH_LIMIT}, the limit of the fused kernels: the whole score matrix is written"
            elif size % FLASH_MULTIPLE:
                problem = f"is not a multiple of {FLASH_MULTIPLE}: queries, keys and values are padded by a copy"
            else:
                continue
            wanted = padded(size, FLASH_MULTIPLE) if size <= FLASH_LIMIT else FLASH_LIMIT
            heads = int(site.attrs.get("num_heads") or 0)
            whole = f" (embed_dim {heads * wanted})" if heads else ""
            yield context.finding(
                self,
                site,
                f"head dimension {size} {problem}; use {wanted}{whole}",
                severity=Severity.INFO if by_products else None,
                dimension="head_dim",
                value=size,
                padded=wanted,
            )


def head_dim(site: Site) -> int:
    """The head dimension of an attention; 0 for what is none."""
    if site.op == "scaled_dot_product_attention" and site.inputs:
        return site.inputs[0].shape[-1]
    if site.op == "multi_head_attention" and site.attrs.get("num_heads"):
        return int(site.attrs.get("embed_dim", 0)) // int(site.attrs["num_heads"])
    return 0
