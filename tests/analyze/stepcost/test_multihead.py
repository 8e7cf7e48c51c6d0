"""What nn.MultiheadAttention runs and keeps, with and without weights asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from amptune.analyze.stepcost.kernels import Attention, Move, Product, Setting
from amptune.analyze.stepcost.memory import step_memory
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import realise
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Gemm, Param, Site
from amptune.core.recipes import RECIPES
from amptune.core.roofline import Traffic
from tests.analyze.graphs import graph_of, tensor

BATCH, TOKENS, HEADS, WIDTH = 8, 32, 4, 64
ELEMENTS, SCORES = BATCH * TOKENS * WIDTH, BATCH * HEADS * TOKENS * TOKENS


def layer(*, operands: int = 1, **attrs: Any) -> Site:
    x = tensor(BATCH, TOKENS, WIDTH)
    projection = Gemm(BATCH * TOKENS, WIDTH, WIDTH)
    head = WIDTH // HEADS
    products = (projection,) * 3 + (
        Gemm(TOKENS, TOKENS, head, BATCH * HEADS), Gemm(TOKENS, head, TOKENS, BATCH * HEADS), projection,
    )  # fmt: skip
    weight = Param("attention.in_proj_weight", tensor(3 * WIDTH, WIDTH), "attention.in_proj_weight")
    settings = {"embed_dim": WIDTH, "kdim": WIDTH, "vdim": WIDTH, "batch_first": True}
    return Site("attention", "multi_head_attention", "module", "attention", inputs=(x,) * operands, outputs=(x,),
                sources=(INPUT,) * operands, params=(weight,), attrs=settings | attrs, gemms=products)  # fmt: skip


def kernels(site: Site, recipe: str = "fp32") -> list[Any]:
    setting = Setting(RECIPES[recipe])
    found = kernels_of(site, realise(graph_of(site), setting.recipe)[site.id], setting)
    return [*found.forward, *found.backward]


def kept(site: Site, recipe: str = "fp32") -> int:
    graph, setting = graph_of(site), Setting(RECIPES[recipe])
    return step_memory(graph, realise(graph, setting.recipe), setting).activations


def moved(site: Site, kind: Traffic) -> float:
    return sum(each.bytes for each in kernels(site) if isinstance(each, Move) and each.traffic is kind)


def test_without_weights_the_layer_runs_fused_attention() -> None:
    fused, plain = kernels(layer(fused=True), "autocast-bf16"), kernels(layer(), "autocast-bf16")
    assert {each.format for each in fused if isinstance(each, Attention)} == {Format.BF16}
    assert not any(isinstance(each, Attention) for each in plain)
    assert moved(layer(fused=True), Traffic.SOFTMAX) == 0 < moved(layer(), Traffic.SOFTMAX)


def test_heads_that_the_kernel_for_fp32_cannot_load_are_multiplied_plainly() -> None:
    site = layer(fused=True)
    odd = dataclasses.replace(site.gemms[3], k=18)
    site = dataclasses.replace(site, gemms=(*site.gemms[:3], odd, *site.gemms[4:]))
    assert not any(isinstance(each, Attention) for each in kernels(site))
    assert any(isinstance(each, Attention) for each in kernels(site, "autocast-bf16"))


def test_one_tensor_is_projected_at_once_and_its_parts_are_copied_apart() -> None:
    found = [kernels(layer(operands=count, fused=True)) for count in (1, 2, 3)]
    products = [[each for each in every if isinstance(each, Product)] for every in found]
    assert [len(each) for each in products] == [2 * 3, 3 * 3, 4 * 3]
    assert {each.gemm.n for each in products[0]} == {3 * WIDTH, WIDTH}
    first, last = (layer(operands=count, fused=True, batch_first=False) for count in (1, 3))
    assert moved(first, Traffic.LAYOUT) - moved(last, Traffic.LAYOUT) == 2 * (2 * 3 * ELEMENTS * 4)


def test_operands_are_copied_where_the_batch_comes_first() -> None:
    first, second = layer(fused=True), layer(fused=True, batch_first=False)
    assert moved(first, Traffic.LAYOUT) > moved(second, Traffic.LAYOUT)
    assert moved(second, Traffic.UNROLLED) == 0 < moved(first, Traffic.UNROLLED)


def test_projections_are_kept_and_scores_where_weights_are_asked_for() -> None:
    assert kept(layer(fused=True)) >= 6 * ELEMENTS * 4  # operand, three projections, what attention made, its copy
    assert kept(layer(dropout=0.1)) - kept(layer(fused=True)) == SCORES * (4 + 1 + 4) - ELEMENTS * 4


def test_fused_attention_is_found_inside_the_layer() -> None:
    from amptune.analyze.sitefacts.enrich import enrich
    from amptune.capture import capture, load_target
    from amptune.capture.target import TargetSpec

    captured = capture(load_target(TargetSpec(f"{__name__}:Both", inputs=("2x5x16",))))
    enrich(captured.graph, captured.graph_module)
    assert captured.graph["quiet"].attrs["fused"] is True
    assert "fused" not in captured.graph["told"].attrs


class Both(nn.Module):
    """The layer without weights and with them."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.told = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.quiet(x, x, x, need_weights=False)[0]
        told: torch.Tensor = self.told(y, y, y)[0]
        return told


def test_queries_that_are_a_parameter_are_no_input() -> None:
    own, given = layer(operands=0, fused=True), layer(operands=1, fused=True)
    assert kernels(own) == kernels(given)
    assert kept(own, "autocast-bf16") > 0
    query = Gemm(BATCH * 2, WIDTH, WIDTH)
    crossed = dataclasses.replace(given, gemms=(query, *given.gemms[1:]))
    assert {each.gemm.n for each in kernels(crossed) if isinstance(each, Product)} == {WIDTH, 2 * WIDTH}
