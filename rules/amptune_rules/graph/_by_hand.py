"""Attention that is written as two products and a softmax, which a fused kernel computes without the scores."""

from __future__ import annotations

import dataclasses

from amptune.core.graph import OUTPUT, Gemm, Site
from amptune.core.graph_context import SMALL_GEMM_FLOPS, SMALL_SHARE, GraphContext

_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "baddbmm"})
_ON_SCORES = frozenset({"mul", "div", "add", "sub", "masked_fill", "where"})
"""What may stand between the scores and their softmax: a scale, a bias, a mask."""
_MASKS = frozenset({"add", "sub", "masked_fill", "where", "baddbmm"})
_ON_WEIGHTS = frozenset({"dropout"})
_STEPS = 6
_WORTH_A_WORD = 1 << 20
"""Bytes of scores under which a fused kernel saves little but launches."""


@dataclasses.dataclass(frozen=True)
class ByHand:
    """An attention by hand.

    Attributes:
        head: size of a head.
        queries, keys: tokens.
        count: batch x heads.
        masked: whether something is added to the scores, or put in their place.
        bias: whether what is added is worked out anew and as large as the scores: a fused kernel has to read it too.
    """

    head: int
    queries: int
    keys: int
    count: int
    masked: bool
    bias: bool = False

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores in 16 bits."""
        return 2 * self.count * self.queries * self.keys


def attention_by_hand(context: GraphContext, softmax: Site) -> ByHand | None:
    """The attention whose weights ``softmax`` makes; ``None`` where it is no attention, or one whose weights are read
    by more than the product with the values, which a fused kernel does not give."""
    shape = softmax.outputs[0].shape if softmax.outputs else ()
    dim = softmax.attrs.get("dim", -1)
    if len(shape) < 3 or not isinstance(dim, int) or dim % len(shape) != len(shape) - 1:
        return None
    scores, met = _scores(context, softmax)
    values = _values(context, softmax)
    if scores is None or values is None or context.share(scores) < SMALL_SHARE:
        return None
    first, second = _gemm(scores), _gemm(values)
    if first is None or second is None or first.flops < SMALL_GEMM_FLOPS or min(first.m, first.n) < 2:
        return None
    if {first.m, first.n} != {shape[-2], shape[-1]} or shape[-1] not in (second.k, second.m, second.n):
        return None
    masked = scores.op in _MASKS or any(site.op in _MASKS for site in met)
    bias = any(_adds_as_much(site, scores) for site in met)
    found = ByHand(first.k, shape[-2], shape[-1], first.batch, masked, bias)
    return found if found.score_bytes >= _WORTH_A_WORD else None


def _gemm(site: Site) -> Gemm | None:
    """The product of two tensors that a site is; ``None`` for one with a parameter, or for several."""
    return site.gemms[0] if len(site.inputs) >= 2 and not site.params and len(set(site.gemms)) == 1 else None


def _scores(context: GraphContext, softmax: Site) -> tuple[Site | None, list[Site]]:
    """The product that reaches a softmax, and what it meets on the way: scales, biases, masks."""
    front, met = [softmax], dict[str, Site]()
    for _ in range(_STEPS):
        before = [site for each in front for site in context.graph.producers(each.id) if _has_shape(site, softmax)]
        products = [site for site in before if site.op in _PRODUCTS]
        if products:
            return (products[0] if len(products) == 1 else None), list(met.values())
        front = [site for site in before if site.op in _ON_SCORES and site.id not in met]
        met |= {site.id: site for site in front}
    return None, []


def _adds_as_much(site: Site, scores: Site) -> bool:
    """Whether a site adds to the scores what is as large and depends on the input, as relative positions do."""
    alike = [tensor for tensor in site.inputs if tensor.numel == scores.outputs[0].numel]
    return site.op in ("add", "sub") and len(alike) > 1 and all(tensor.requires_grad for tensor in alike)


def _has_shape(site: Site, softmax: Site) -> bool:
    """Whether a site gives as many numbers as the softmax: scores in any layout."""
    return bool(site.outputs) and site.outputs[0].numel == softmax.outputs[0].numel


def _values(context: GraphContext, softmax: Site) -> Site | None:
    """The product with the values, where nothing else reads the weights."""
    current = softmax
    for _ in range(_STEPS):
        after = list(context.graph.graph.successors(current.id))
        if len(after) != 1 or after[0] == OUTPUT:
            return None
        current = context.graph[after[0]]
        if current.op in _PRODUCTS:
            return current
        if current.op not in _ON_WEIGHTS:
            return None
    return None
