"""Gradients that come back to a tensor from several readers."""

from __future__ import annotations

import dataclasses

from amptune.analyze.stepcost.gradients import Accumulations
from amptune.analyze.stepcost.kernels import Move, Setting
from amptune.core.autocast import realise
from amptune.core.graph import INPUT, PrecisionGraph, Site
from amptune.core.recipes import RECIPES
from amptune.core.roofline import Traffic
from tests.analyze.graphs import graph_of, op

BYTES = 4 * 8 * 16


def moves(graph: PrecisionGraph) -> list[tuple[Traffic, float]]:
    setting = Setting(RECIPES["fp32"])
    found = list(Accumulations(graph).under(realise(graph, setting.recipe), setting))
    assert all(isinstance(kernel, Move) for kernel in found)
    return [(kernel.traffic, kernel.bytes) for kernel in found if isinstance(kernel, Move)]


def reader(name: str, *, cut: str = "", shape: tuple[int, ...] = (8, 16)) -> Site:
    return op(name, "relu", "first", shape=shape, **({"views": {0: (cut, cut)}} if cut else {}))


def test_each_further_reader_adds_one_sum() -> None:
    graph = graph_of(op("first", "relu", INPUT), *(reader(f"r{index}") for index in range(3)))
    assert moves(graph) == [(Traffic.POINTWISE, 3 * BYTES)] * 2


def test_parts_of_a_split_come_back_as_one() -> None:
    parts = [reader(f"r{index}", cut=f"slice({index},){{}} chunk(2, -1){{}}", shape=(8, 8)) for index in range(2)]
    assert moves(graph_of(op("first", "relu", INPUT), *parts)) == [(Traffic.JOINED, 2 * BYTES)]


def test_a_slice_comes_back_into_zeros_and_is_added() -> None:
    graph = graph_of(op("first", "relu", INPUT), reader("whole"), reader("part", cut="slice(1,){}", shape=(8, 8)))
    assert moves(graph) == [(Traffic.LAYOUT, 2 * BYTES), (Traffic.POINTWISE, 3 * BYTES)]


def test_a_shared_module_makes_a_tensor_a_call() -> None:
    shared = dataclasses.replace(op("first", "relu", INPUT), calls=3)
    graph = graph_of(shared, *(reader(f"r{index}") for index in range(4)))
    assert len(moves(graph)) == 1


def test_the_gradient_of_an_expanded_tensor_is_summed() -> None:
    repeated = op("r0", "relu", "first", shape=(4, 8, 16), views={0: ("", "expand(4, 8, 16){}")})
    assert moves(graph_of(op("first", "relu", INPUT), repeated)) == [(Traffic.REDUCTION, (1 + 4) * BYTES)]
    larger = op("r0", "relu", "first", shape=(4, 8, 16))  # a shared module whose other calls make larger tensors
    assert moves(graph_of(op("first", "relu", INPUT), larger)) == []
