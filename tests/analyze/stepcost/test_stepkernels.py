"""Kernels that repeated blocks share are those that each site would have by itself."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from amptune.analyze.stepcost.kernels import Setting
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.analyze.stepcost.stepkernels import StepKernels, Times, counted
from amptune.core.autocast import realise
from amptune.core.graph import INPUT, Gemm, TensorMeta
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES, STOCK, Recipe
from tests.analyze.graphs import graph_of, linear, op

IMAGE = TensorMeta((8, 64, 32, 32), "float32", requires_grad=True)


def _variants() -> list[object]:
    plain = dataclasses.replace(op("a", "conv2d", INPUT, shape=IMAGE.shape), inputs=(IMAGE,), outputs=(IMAGE,))
    last = dataclasses.replace(plain, id="b", attrs={"channels_last": True})
    first = dataclasses.replace(plain, id="c", attrs={"channels_last": False})
    twice = dataclasses.replace(op("d", "gelu", INPUT, shape=(64, 64)), calls=2)
    return [plain, last, first, op("e", "gelu", INPUT, shape=(64, 64)), twice, linear("f", INPUT, 64, 64, 64)]


@pytest.mark.parametrize("recipe", STOCK, ids=lambda recipe: recipe.name)
def test_sharing_changes_no_kernel(recipe: Recipe) -> None:
    graph = graph_of(*_variants())  # type: ignore[arg-type]
    dtypes, setting = realise(graph, recipe), Setting(recipe)
    shared = StepKernels(graph).of(dtypes, setting)
    assert shared == {site.id: kernels_of(site, dtypes[site.id], setting) for site in graph}


def test_equal_sites_share_one_object_and_are_counted() -> None:
    blocks = [linear(f"blocks.{index}.fc", INPUT, 64, 64, 64) for index in range(12)]
    graph = graph_of(*blocks, linear("head", INPUT, 64, 128, 64))
    recipe = STOCK[0]
    kernels = StepKernels(graph).of(realise(graph, recipe), Setting(recipe))
    assert sorted(count for _, count in counted(kernels.values())) == [1, 12]
    times = Times(GPUS["h100"])
    first, last = kernels["blocks.0.fc"], kernels["head"]
    single = [sum(times.of(kernel) for kernel in itertools.chain(e.forward, e.backward)) for e in (first, last)]
    assert [times.of_site(first), times.of_site(last), times.of_site(first)] == [*single, single[0]]


def test_calls_of_a_shared_layer_take_what_their_own_sizes_take() -> None:
    times = Times(GPUS["h100"])

    def seconds(*rows: int) -> float:
        first = linear("head", INPUT, rows[0], 1024, 1024)
        moved = sum(4 * (2 * each * 1024 + 1024 * 1024) for each in rows)
        gemms = tuple(Gemm(each, 1024, 1024) for each in rows)
        site = dataclasses.replace(first, calls=len(rows), gemms=gemms, bytes_moved=moved)
        setting = Setting(RECIPES["fp32"])
        return times.of_site(kernels_of(site, realise(graph_of(site), setting.recipe)["head"], setting))

    apart = sum(seconds(rows) for rows in (65536, 16384, 4096))
    assert seconds(65536, 16384, 4096) == pytest.approx(apart, rel=0.05)
    assert seconds(65536, 65536, 65536) == pytest.approx(3 * seconds(65536))


@pytest.mark.parametrize("name", ["sub", "div", "mul", "add"])
def test_operands_that_look_alike_are_told_apart_by_their_place(name: str) -> None:
    setting = Setting(RECIPES["fp32"])
    one = dataclasses.replace(op("a", name, INPUT, INPUT, shape=IMAGE.shape), inputs=(IMAGE, IMAGE), outputs=(IMAGE,))
    other = dataclasses.replace(one, inputs=(IMAGE, dataclasses.replace(IMAGE)))
    first, second = (kernels_of(site, realise(graph_of(site), setting.recipe)["a"], setting) for site in (one, other))
    assert first == second
