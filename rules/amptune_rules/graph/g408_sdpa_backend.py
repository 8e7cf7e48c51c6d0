"""G408: an attention that does not use the flash kernel."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, listed
from amptune.core.hardware import Gpu
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._by_hand import ByHand, attention_by_hand
from amptune_rules.graph._examples import model_file

FLASH_LIMIT = 256
AMPERE = (8, 0)
_WITH_MASK = "cuDNN's (compute capability 9.0 and later) or the memory-efficient one"


class SdpaBackend(GraphRule):
    """Attention by hand, or with arguments or on a GPU that the flash kernel does not take.

    ## What it does
    Reports attention with an explicit mask, with a head dimension over 256, in FP64, or on GPUs below compute
    capability 8.0, and names the kernel that runs instead; and attention that is written as a product, a softmax and
    another product, where nothing else reads its weights.

    ## Why is this bad
    The kernels that take masks read them from memory and are slower, and the math path, or attention by hand, writes
    the whole score matrix and keeps it for the backward. FP32 attention never has the flash kernel, under TF32 as well:
    much of what a 16-bit recipe gains on a transformer is here.

    ## Example
    ```python
    F.scaled_dot_product_attention(q, k, v, attn_mask=torch.tril(torch.ones(t, t, dtype=torch.bool)))
    ```

    ## Use instead
    ```python
    F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ```

    ## Fix safety
    Information only.

    ## References
    torch.nn.attention.sdpa_kernel; aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.
    """

    code = "G408"
    name = "sdpa-backend"
    severity = Severity.INFO
    INVALID = (
        Example("an explicit mask", model_file(
            """
            mask = torch.ones(128, 128, dtype=torch.bool, device=x.device).tril()
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)  # <- G408
            """, batch="torch.randn(2, 4, 128, 64, requires_grad=True)")),
        Example("attention by hand", model_file(
            """
            scores = x @ x.transpose(-2, -1) / 8
            return scores.softmax(-1) @ x  # <- G408
            """, batch="torch.randn(8, 4, 128, 64, requires_grad=True)")),
        Example("attention with a slope for each head", model_file(
            """
            places = torch.arange(128, device=x.device)
            scores = x @ x.transpose(-2, -1) / 8
            scores = scores - self.slopes * (places[:, None] - places[None, :]).abs()
            scores = scores.masked_fill(places[:, None] < places[None, :], float("-inf"))
            return scores.softmax(-1) @ x  # <- G408
            """, init="self.register_buffer('slopes', 2.0 ** -torch.arange(1, 5).view(4, 1, 1))",
            batch="torch.randn(8, 4, 128, 64, requires_grad=True)")),
        Example("a T4", model_file("return F.scaled_dot_product_attention(x, x, x)  # <- G408",
                                   batch="torch.randn(2, 4, 128, 64, requires_grad=True)"), options={"gpus": ("t4",)}),
    )  # fmt: skip
    VALID = (
        Example("weights that are read again", model_file(
            """
            weights = (x @ x.transpose(-2, -1) / 8).softmax(-1)
            return weights @ x, weights.mean(1)
            """, batch="torch.randn(8, 4, 128, 64, requires_grad=True)",
            loss="output[0].sum() + output[1].square().sum()")),
        Example("is_causal", model_file("return F.scaled_dot_product_attention(x, x, x, is_causal=True)",
                                        batch="torch.randn(2, 4, 128, 64, requires_grad=True)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each attention."""
        if not context.tensor_core_gpus():
            return
        for site in context.graph:
            if site.op == "softmax" and (found := attention_by_hand(context, site)) and found.head <= FLASH_LIMIT:
                yield context.finding(self, site, _unfused(found))
            if site.op == "scaled_dot_product_attention" and site.inputs:
                if reason := _why_not_flash(site):
                    yield context.finding(self, site, f"no flash attention here: {reason}")
                elif old := [gpu for gpu in context.tensor_core_gpus() if _is_before_ampere(gpu)]:
                    reason = "the memory-efficient kernel runs instead"
                    yield context.finding(self, site, f"no flash attention on {listed(old)}: {reason}")


def _unfused(found: ByHand) -> str:
    scores = found.score_bytes / 2**20
    mask = ", with the mask or bias as attn_mask" if found.masked else ""
    if found.bias:
        mask = ", with the bias as attn_mask: as large as the scores, it is read as they were, but they are not kept"
    return (
        f"attention by hand: no fused kernel, so {found.queries} x {found.keys} scores for each head "
        f"({scores:,.0f} MiB in 16 bits) are written, read by the softmax and kept for the backward; "
        f"F.scaled_dot_product_attention does without{mask}"
    )


def _is_before_ampere(gpu: Gpu) -> bool:
    return gpu.capability is not None and gpu.capability < AMPERE


def _why_not_flash(site: Site) -> str:
    head = site.inputs[0].shape[-1]
    if any(tensor.dtype == "float64" for tensor in site.inputs):
        return "float64 runs on the math path"
    if head > FLASH_LIMIT:
        return f"a head dimension of {head} is over {FLASH_LIMIT}, it runs on the math path"
    if site.attrs.get("masked"):
        causal = "; this mask is causal: is_causal=True needs none" if site.attrs.get("mask_causal") else ""
        return f"torch's flash kernel takes no mask; {_WITH_MASK} runs instead{causal}"
    return ""
