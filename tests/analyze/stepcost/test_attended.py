"""Copies into rows behind attention: none where the kernel lays its result out so."""

from __future__ import annotations

import dataclasses

import pytest

from amptune.analyze.stepcost.kernels import Setting
from amptune.analyze.stepcost.memory import step_memory
from amptune.analyze.stepcost.stepkernels import StepKernels
from amptune.core.autocast import realise
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.recipes import RECIPES
from tests.analyze.graphs import graph_of, linear, op, tensor
from tests.analyze.stepcost.test_attention import BATCH, HEADS, SIZE, TOKENS, attention

WITHIN = (0, 2, 1, 3)
ROWS = BATCH * TOKENS
WIDTH = HEADS * SIZE
TURNED = "transpose(1, 2){}"


def _attending(site: Site, views: str = TURNED, *, by_reshape: bool = False) -> PrecisionGraph:
    """Attention, its heads put together, and a layer that keeps what it reads."""
    made = tensor(BATCH, TOKENS, HEADS, SIZE)
    joined = dataclasses.replace(op("joined", "contiguous", site.id, views={0: ("", views)}), inputs=(made,),
                                 outputs=(made,))  # fmt: skip
    if not by_reshape:
        return graph_of(site, joined, linear("out", "joined", ROWS, WIDTH, WIDTH))
    layer = linear("out", site.id, ROWS, WIDTH, WIDTH)
    attrs = {"copied": ROWS * WIDTH, "views": {0: ("", f"reshape({ROWS}, {WIDTH}){{}} {views}")}}
    return graph_of(site, dataclasses.replace(layer, attrs=attrs))


CASES = {
    "rows in FP32": (attention(), "fp32", TURNED, False),
    "as the query in BF16": (attention(strided={0: WITHIN}), "autocast-bf16", TURNED, False),
    "a query head by head": (attention(), "autocast-bf16", TURNED, True),
    "with dropout": (attention(strided={0: WITHIN}, dropout_p=0.1), "autocast-fp16", TURNED, False),
    "by plain products": (attention(mask=True, mask_strided=True), "fp32", TURNED, True),
    "turned otherwise": (attention(), "fp32", "transpose(1, 3){}", True),
    "turned by a permutation": (attention(), "fp32", "permute([0, 2, 1, 3],){}", False),
    "turned twice": (attention(), "fp32", f"transpose(2, 3){{}} {TURNED}", True),
}


@pytest.mark.parametrize("by_reshape", [False, True], ids=["contiguous", "reshape"])
@pytest.mark.parametrize("case", CASES)
def test_heads_are_put_together_by_a_copy_or_as_they_are(case: str, by_reshape: bool) -> None:
    site, recipe, views, is_copied = CASES[case]
    graph = _attending(site, views, by_reshape=by_reshape)
    setting = Setting(RECIPES[recipe])
    kernels = StepKernels(graph).of(realise(graph, RECIPES[recipe]), setting)
    joining = kernels["out" if by_reshape else "joined"].forward
    assert sum(type(kernel).__name__ == "Move" and kernel.ops == 1 for kernel in joining) == is_copied


def test_what_is_not_copied_is_kept_once() -> None:
    """By the attention and the layer behind it; plain products in its place would need the copy."""
    size = 4 * ROWS * WIDTH
    kept = []
    for views in (TURNED, "transpose(1, 3){}"):
        graph = _attending(attention(), views)
        found = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"], holds_output=False))
        kept.append(found.activations)
    assert kept[1] - kept[0] == size
