"""Kernels that neither bytes nor operations bound."""

from __future__ import annotations

import dataclasses

import pytest

from amptune.analyze.stepcost.kernels import Setting, Waiting
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import realise
from amptune.core.graph import Site
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES
from tests.analyze.graphs import graph_of, op, tensor


def _waits(site: Site, recipe: str = "fp32", *, fixed: bool = False) -> tuple[float, float]:
    """Seconds, forward and backward."""
    setting = Setting(RECIPES[recipe], fixed=fixed)
    found = kernels_of(site, realise(graph_of(site), setting.recipe)[site.id], setting)
    ahead, behind = (
        sum(each.seconds(GPUS["h200"]) for each in kernels if isinstance(each, Waiting))
        for kernels in (found.forward, found.backward)
    )
    return ahead, behind


def _resized(size: int, to: int, **attrs: object) -> Site:
    return Site("up", "interpolate", "function", "", inputs=(tensor(16, 256, size, size),),
                outputs=(tensor(16, 256, to, to),), sources=("x",), attrs={"mode": "bilinear", **attrs})  # fmt: skip


def test_pixels_that_are_spread_from_few_wait_for_each_other_on_the_way_back() -> None:
    spread, doubled = _waits(_resized(1, 64)), _waits(_resized(32, 64))
    assert spread[0] == doubled[0] == pytest.approx(16 * 256 * 0.38e-6)  # a thread goes through all images and channels
    assert spread[1] > 100 * doubled[1] > 0
    assert _waits(_resized(1, 64, mode="nearest")) == (0, 0)


def test_channels_last_waits_less() -> None:
    plain, last = _waits(_resized(1, 64)), _waits(_resized(1, 64, channels_last=True))
    assert last[0] == 0
    assert 0 < last[1] < plain[1] / 10
    assert _waits(_resized(1, 64), fixed=True) == last


@pytest.mark.parametrize("name", ["cumsum", "softmax"])
def test_what_goes_along_another_dimension_than_the_last_goes_row_by_row(name: str) -> None:
    shape = (8, 512, 64)
    along = {dim: _waits(op("a", name, "x", shape=shape, dim=dim))[0] for dim in (1, 2, -1)}
    assert along[1] > 0
    assert along[2] == along[-1] == 0


def test_a_loss_takes_its_rows_one_by_one() -> None:
    def loss(rows: int) -> Site:
        return Site("loss", "cross_entropy", "function", "", inputs=(tensor(rows, 10), tensor(rows)),
                    outputs=(tensor(),), sources=("x", "y"))  # fmt: skip

    assert _waits(loss(2000)) == pytest.approx([2 * each for each in _waits(loss(1000))])
    assert min(_waits(loss(1000))) > 0


def test_an_instance_norm_is_a_batch_norm_of_its_samples_channels() -> None:
    def seconds(shape: tuple[int, ...], name: str) -> float:
        site = op("norm", name, "x", shape=shape)
        setting = Setting(RECIPES["fp32"])
        found = kernels_of(site, realise(graph_of(site), setting.recipe)["norm"], setting)
        return sum(each.seconds(GPUS["h200"]) for each in (*found.forward, *found.backward))

    few, many = (2, 32, 96, 96, 96), (64, 32, 24, 36, 32)
    assert seconds(few, "instance_norm") == pytest.approx(seconds((1, 64, 96, 96, 96), "batch_norm"), rel=0.01)
    assert seconds(few, "instance_norm") > 2 * seconds(many, "instance_norm")


def test_all_that_one_index_names_is_a_row() -> None:
    def lookup(*row: int) -> Site:
        ids = tensor(4096, dtype="int64", grad=False)
        return Site("e", "index", "function", "", inputs=(tensor(64, *row), ids), outputs=(tensor(4096, *row),),
                    sources=("x", "ids"))  # fmt: skip

    assert _waits(lookup(16))[0] > _waits(lookup(8, 16))[0] > 0
    assert _waits(lookup(64, 64))[0] == 0


def test_short_rows_are_looked_up_no_faster() -> None:
    narrow, wide = (op("e", "index_select", "x", shape=(4096, width)) for width in (16, 4096))
    assert _waits(narrow)[0] > 0
    assert _waits(wide)[0] == 0
    assert _waits(dataclasses.replace(narrow, calls=3))[0] == pytest.approx(3 * _waits(narrow)[0])


def _reduced(kind: str, shape: tuple[int, ...], dim: int, recipe: str, **attrs: object) -> float:
    """Milliseconds of a reduction alone on an H200."""
    made = tuple(length for axis, length in enumerate(shape) if axis != dim % len(shape))
    dtype = {"autocast-bf16": "bfloat16"}.get(recipe, "float32")
    site = Site("r", kind, "function", "", inputs=(tensor(*shape, dtype=dtype),), outputs=(tensor(*made, dtype=dtype),),
                sources=("x",), attrs={"dim": dim, **attrs})  # fmt: skip
    setting = Setting(RECIPES[recipe])
    found = kernels_of(site, realise(graph_of(site), setting.recipe)["r"], setting)
    return 1e3 * sum(each.seconds(GPUS["h200"]) for each in found.forward)


@pytest.mark.parametrize(("recipe", "measured"), [("fp32", 1.804), ("autocast-bf16", 1.697)])
def test_the_largest_of_few_neighbours_takes_what_its_results_take(recipe: str, measured: float) -> None:
    """dgcnn's profiled steps: no faster in 16 bits, and four times as long as the bytes."""
    assert _reduced("max", (32, 256, 1024, 20), -1, recipe) == pytest.approx(measured, rel=0.1)
    assert _reduced("max", (32, 64, 1024, 20), -1, recipe) == pytest.approx(measured / 4, rel=0.1)


def test_only_short_dimensions_that_lie_innermost_hold_a_sum_up() -> None:
    shape = (32, 64, 1024, 20)
    inner, outer = _reduced("amax", shape, -1, "fp32"), _reduced("amax", (32, 64, 20, 1024), 2, "fp32")
    assert inner > 2 * outer
    assert _reduced("amax", shape, -1, "fp32", strided={0: (0, 2, 3, 1)}) == pytest.approx(outer, rel=0.01)
    long = _reduced("amax", (2048, 20480), -1, "fp32"), _reduced("amax", (2048, 20480), 0, "fp32")
    assert long[0] == pytest.approx(long[1], rel=0.1)
