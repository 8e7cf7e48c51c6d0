"""Which implementation of attention runs, and what the one that writes the scores costs."""

from __future__ import annotations

import pytest

from amptune.analyze.estimate import estimate_all
from amptune.analyze.stepcost.attention import Backend, backend_of
from amptune.analyze.stepcost.kernels import Attention, Product, Setting
from amptune.analyze.stepcost.memory import step_memory
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import realise
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Gemm, Site
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES
from tests.analyze.graphs import graph_of, tensor

BATCH, HEADS, TOKENS, SIZE = 4, 8, 256, 64


def attention(
    *, mask: bool = False, mask_grad: bool = False, keys: int = HEADS, size: int = SIZE, **attrs: object
) -> Site:
    query = tensor(BATCH, HEADS, TOKENS, size)
    other = tensor(BATCH, keys, TOKENS, size)
    masks = (tensor(1, HEADS, TOKENS, TOKENS, grad=mask_grad),) if mask else ()
    inputs = (query, other, other, *masks)
    products = Gemm(TOKENS, TOKENS, size, BATCH * HEADS), Gemm(TOKENS, size, TOKENS, BATCH * HEADS)
    return Site("#sdpa.0", "scaled_dot_product_attention", "function", "", inputs=inputs, outputs=(query,),
                sources=(INPUT,) * len(inputs), attrs={"masked": mask, **attrs}, gemms=products)  # fmt: skip


@pytest.mark.parametrize(
    ("site", "half", "full"),
    [
        (attention(), Backend.FLASH, Backend.EFFICIENT),
        (attention(mask=True), Backend.FLASH, Backend.EFFICIENT),
        (attention(mask=True, mask_grad=True), Backend.EFFICIENT, Backend.EFFICIENT),
        (attention(mask=True, mask_strided=True), Backend.MATH, Backend.MATH),
        (attention(keys=2), Backend.FLASH, Backend.MATH),
        (attention(size=66), Backend.FLASH, Backend.MATH),
    ],
    ids=["plain", "masked", "learned mask", "strided mask", "grouped", "odd head"],
)
def test_backend_in_sixteen_bits_and_in_fp32(site: Site, half: Backend, full: Backend) -> None:
    assert backend_of(site, "bfloat16") is half
    assert backend_of(site, "float16") is half
    assert backend_of(site, "float32") is full


def test_three_dimensions_or_float64_have_no_fused_kernel() -> None:
    flat = tensor(BATCH * HEADS, TOKENS, SIZE)
    site = Site("#sdpa.0", "scaled_dot_product_attention", "function", "", inputs=(flat, flat, flat), outputs=(flat,))
    assert backend_of(site, "bfloat16") is Backend.MATH
    assert backend_of(attention(), "float64") is Backend.MATH


def test_plain_attention_multiplies_no_halves_under_autocast() -> None:
    """Its scores are in FP32, whose products may use TF32."""
    setting = Setting(RECIPES["autocast-bf16"])
    graphs = [graph_of(attention(mask=True)), graph_of(attention(mask=True, mask_strided=True))]
    fused, plain = (
        kernels_of(graph["#sdpa.0"], realise(graph, setting.recipe)["#sdpa.0"], setting) for graph in graphs
    )
    assert {kernel.format for kernel in fused.forward if isinstance(kernel, Attention)} == {Format.BF16}
    assert {kernel.format for kernel in plain.forward if isinstance(kernel, Product)} == {Format.TF32}
    assert not any(isinstance(kernel, Attention) for kernel in plain.forward)


def test_plain_attention_is_slower_and_keeps_the_scores() -> None:
    gpu, setting = GPUS["h200"], Setting(RECIPES["autocast-bf16"])
    graphs = [graph_of(attention(mask=True)), graph_of(attention(mask=True, mask_strided=True, dropout_p=0.1))]
    fused, plain = (estimate_all(graph, [gpu], [setting.recipe])["h200"]["autocast-bf16"] for graph in graphs)
    assert plain.step_ms > fused.step_ms
    scores = 4 * BATCH * HEADS * TOKENS * TOKENS
    kept = [step_memory(graph, realise(graph, setting.recipe), setting).activations for graph in graphs]
    assert kept[1] - kept[0] > 2 * scores


@pytest.mark.parametrize("recipe", ["fp32", "autocast-bf16"])
def test_fused_attention_keeps_one_sum_a_row(recipe: str) -> None:
    """torch's fused kernels hand back the logarithm of each row's sum of exponentials, in FP32, and keep it."""

    def activations(size: int) -> int:
        graph = graph_of(attention(size=size))
        setting = Setting(RECIPES[recipe], holds_output=False)
        return step_memory(graph, realise(graph, setting.recipe), setting).activations

    # What is kept of query, key, value and result grows with the size of a head; the sums do not.
    assert 2 * activations(64) - activations(128) == 4 * BATCH * HEADS * TOKENS
