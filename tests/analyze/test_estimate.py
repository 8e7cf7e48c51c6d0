"""Predicted steps: sums that can be checked by hand, and orderings that must hold."""

from __future__ import annotations

import dataclasses
import math

import pytest

from amptune.analyze.estimate import FIXED, can_run, estimate_all, launch_words, site_times
from amptune.analyze.stepcost.kernels import Groups, Move, Product, Setting
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import realise
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Gemm, Param, PrecisionGraph, Site
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES, STOCK
from amptune.core.roofline import Pass, Traffic, efficiency_of
from tests.analyze.graphs import graph_of, linear, mlp, op, tensor

H100 = GPUS["h100"]


def steps(graph: PrecisionGraph, gpu: str = "h100", **more: object) -> dict[str, float]:
    table = estimate_all(graph, [GPUS[gpu]], STOCK, **more)[gpu]  # type: ignore[arg-type]
    return {name: estimate.step_ms for name, estimate in table.items()}


def test_three_products_of_a_linear_and_two_for_the_first() -> None:
    graph = mlp(layers=2)
    dtypes = realise(graph, RECIPES["fp32"])
    first, second = (kernels_of(graph[f"layers.{i}"], dtypes[f"layers.{i}"], Setting(RECIPES["fp32"])) for i in (0, 1))
    directions = [
        [k.direction for k in each.forward + each.backward if isinstance(k, Product)] for each in (first, second)
    ]
    assert directions == [[Pass.FORWARD, Pass.WEIGHT], [Pass.FORWARD, Pass.INPUT, Pass.WEIGHT]]


def test_autocast_adds_a_weight_cast_and_an_activation_cast_each_way() -> None:
    graph = mlp(m=8, width=16, layers=2)
    dtypes = realise(graph, RECIPES["autocast-bf16"])
    kernels = kernels_of(graph["layers.0"], dtypes["layers.0"], Setting(RECIPES["autocast-bf16"]))
    casts = [kernel for kernel in kernels.forward if isinstance(kernel, Move) and kernel.traffic is Traffic.CAST]
    assert sorted(cast.bytes for cast in casts) == [8 * 16 * 6, 16 * 16 * 6]
    later = kernels_of(graph["layers.1"], dtypes["layers.1"], Setting(RECIPES["autocast-bf16"]))
    assert len([k for k in later.forward if isinstance(k, Move)]) == 1  # its input is bf16 already


def test_each_call_of_a_helpers_line_sums_the_gradient_of_its_own_weight() -> None:
    weights = tuple(Param(name, tensor(64, grad=True), name) for name in ("a", "b"))
    one = dataclasses.replace(op("#mul.0", "mul", INPUT, shape=(4096, 64)), params=weights[:1])
    both = dataclasses.replace(one, params=weights, calls=2, bytes_moved=2 * one.bytes_moved, attrs={"call_params": 1})
    found = []
    for site in (one, both):
        graph = graph_of(site)
        kernels = kernels_of(graph[site.id], realise(graph, RECIPES["fp32"])[site.id], Setting(RECIPES["fp32"]))
        moves = [kernel for kernel in kernels.backward if isinstance(kernel, Move)]
        found.append([move.bytes for move in moves if move.traffic is Traffic.REDUCTION])
    assert found[1] == 2 * found[0] != []


def test_without_training_nothing_goes_backward() -> None:
    graph = mlp(layers=1)
    dtypes = realise(graph, RECIPES["fp32"])
    assert not kernels_of(graph["layers.0"], dtypes["layers.0"], Setting(RECIPES["fp32"], train=False)).backward
    assert steps(graph, train=False)["fp32"] < 0.6 * steps(graph)["fp32"]


def test_recipes_are_ordered_on_large_products() -> None:
    found = steps(mlp(m=16384))
    assert found["fp32"] > found["tf32"] > found["autocast-bf16"]


def test_compiled_fp8_wins_on_large_products_and_loses_on_small_ones() -> None:
    large, small = steps(mlp(m=16384, width=8192), mode="compile"), steps(mlp(m=8192, width=512), mode="compile")
    assert large["fp8-tensorwise"] < large["autocast-bf16"]
    assert small["fp8-tensorwise"] > small["autocast-bf16"]


@pytest.mark.parametrize(
    ("m", "k", "n", "tensorwise", "rowwise"),
    [(8192, 4096, 14336, 8.372, 8.319), (8192, 14336, 4096, 8.419, 8.849), (8192, 2048, 8192, 3.644, 3.760),
     (16384, 768, 3072, 2.323, 2.516), (16384, 3072, 768, 2.219, 2.639)],
)  # fmt: skip
def test_fp8_linears_of_torchao_in_eager_mode_take_what_was_measured(
    m: int, k: int, n: int, tensorwise: float, rowwise: float
) -> None:
    """Milliseconds on an H200, forward and backward, of a BF16 input (reports/fp8_casts_h200.md)."""
    for name, measured in (("fp8-tensorwise", tensorwise), ("fp8-rowwise", rowwise)):
        recipe = RECIPES[name]
        before, site = op("#relu.0", "relu", INPUT, shape=(m, k)), linear("fc", "#relu.0", m, k, n)
        graph = graph_of(before, site)
        kernels = kernels_of(graph["fc"], realise(graph, recipe)["fc"], Setting(recipe))
        predicted = sum(kernel.seconds(GPUS["h200"]) for kernel in (*kernels.forward, *kernels.backward))
        assert 1e3 * predicted == pytest.approx(measured, rel=0.2)


def test_tf32_does_nothing_to_products_in_float64() -> None:
    graph = mlp(layers=2)
    double = [
        dataclasses.replace(
            site,
            inputs=tuple(dataclasses.replace(each, dtype="float64") for each in site.inputs),
            outputs=tuple(dataclasses.replace(each, dtype="float64") for each in site.outputs),
            params=tuple(
                dataclasses.replace(each, meta=dataclasses.replace(each.meta, dtype="float64")) for each in site.params
            ),
        )
        for site in graph
    ]
    times = steps(graph_of(*double))
    assert times["tf32"] == times["fp32"]
    assert times["autocast-bf16"] == times["fp32"], "autocast leaves float64 alone"
    single = steps(graph)
    assert single["tf32"] < single["fp32"]


def test_what_autocast_leaves_in_fp32_may_use_tf32_where_there_is_tf32() -> None:
    """A grouped product of experts, which autocast does not know."""
    weight = Param("experts", tensor(8, 2048, 2048), True)
    experts = dataclasses.replace(
        op("#grouped_mm", "grouped_mm", INPUT, shape=(4096, 2048)), gemms=(Gemm(4096, 2048, 2048),), params=(weight,)
    )
    graph = graph_of(experts)
    dtypes = realise(graph, RECIPES["autocast-bf16"])["#grouped_mm"]
    assert dtypes.compute == "float32"
    on_ampere, on_volta = steps(graph, "a100"), steps(graph, "v100")
    assert on_ampere["autocast-bf16"] == pytest.approx(on_ampere["tf32"], rel=0.05)
    assert on_ampere["autocast-bf16"] < 0.7 * on_ampere["fp32"]
    assert on_volta["autocast-fp16"] == pytest.approx(on_volta["fp32"], rel=0.05)


def experts(rows: int = 8192) -> Site:
    """Eight experts of Mixtral's, whose rows are sorted by expert."""
    return dataclasses.replace(
        op("#grouped_mm", "grouped_mm", INPUT, shape=(rows, 1024)), gemms=(Gemm(rows // 8, 7168, 1024, batch=8),),
        params=(Param("experts", tensor(8, 1024, 7168), True),),
    )  # fmt: skip


def test_groups_of_rows_are_one_kernel_in_bf16_on_hopper_alone() -> None:
    """2703 kernels and 48 waits in a step of Mixtral, whose experts autocast leaves in FP32 (H200)."""

    def of(recipe: str, gpu: str) -> tuple[float, float]:
        site = experts()
        kernels = kernels_of(site, realise(graph_of(site), RECIPES[recipe])[site.id], Setting(RECIPES[recipe]))
        groups = [k for k in (*kernels.forward, *kernels.backward) if isinstance(k, Groups)]
        return sum(k.seconds(GPUS[gpu]) for k in groups), sum(k.ops + k.further_ops(GPUS[gpu]) for k in groups)

    on_hopper, launches = of("params-bf16", "h100")
    by_group, more = of("params-fp16", "h100")
    assert launches == 3, "one for each product of training"
    assert more > 3 + 8
    assert by_group > 1.05 * on_hopper
    assert of("params-bf16", "a100")[0] == pytest.approx(of("params-fp16", "a100")[0], rel=0.1)
    assert of("params-bf16", "a100")[1] == more, "group by group, whatever the format"


def test_the_processor_waits_for_products_group_by_group() -> None:
    recipes = [RECIPES[name] for name in ("tf32", "params-bf16")]
    table = estimate_all(graph_of(experts(16384)), [GPUS["h100"]], recipes)["h100"]
    by_group, at_once = table["tf32"], table["params-bf16"]
    assert by_group.launch_ms > 0.8 * by_group.gpu_ms
    assert at_once.launch_ms < 0.2 * at_once.gpu_ms
    assert by_group.step_ms == max(by_group.launch_ms, by_group.gpu_ms)
    on_ampere = estimate_all(graph_of(experts(64)), [GPUS["a100"]], [RECIPES["params-bf16"], RECIPES["params-fp16"]])[
        "a100"
    ]
    assert on_ampere["params-bf16"].launch_ms == pytest.approx(on_ampere["params-fp16"].launch_ms, rel=0.05)


def test_padding_a_misaligned_head_pays() -> None:
    found = steps(mlp(m=16384, width=768, out=50257))
    assert found["autocast-bf16" + FIXED] < 0.7 * found["autocast-bf16"]
    assert found["fp32" + FIXED] == pytest.approx(found["fp32"], rel=0.01)


def test_nothing_to_fix_costs_nothing() -> None:
    found = steps(mlp())
    assert found["autocast-bf16" + FIXED] == found["autocast-bf16"]


def test_a_tiny_model_is_bound_by_launches_and_gains_nothing() -> None:
    table = estimate_all(mlp(m=8, width=16), [H100], STOCK)["h100"]
    assert {estimate.bound for estimate in table.values()} == {"launch"}
    assert table["autocast-bf16"].step_ms > table["fp32"].step_ms  # the casts are launches as well


@pytest.mark.parametrize(
    ("recipe", "gpu", "expected"),
    [("tf32", "v100", False), ("tf32", "a100", True), ("fp8-rowwise", "a100", False), ("fp8-rowwise", "h100", True),
     ("autocast-bf16", "v100", True), ("autocast-fp16", "t4", True)],
)  # fmt: skip
def test_which_recipe_runs_where(recipe: str, gpu: str, expected: bool) -> None:
    assert can_run(RECIPES[recipe], GPUS[gpu]) is expected


def test_a_recipe_that_cannot_run_is_absent_and_the_cpu_is_left_out() -> None:
    tables = estimate_all(mlp(), [GPUS["a100"], GPUS["cpu"]], STOCK)
    assert set(tables) == {"a100"}
    assert not any(name.startswith("fp8") for name in tables["a100"])


def test_an_fp8_recipe_without_a_layer_to_convert_is_left_out() -> None:
    assert not any(name.startswith("fp8") for name in steps(mlp(m=4096, width=1000)))
    assert "fp8-tensorwise" in steps(mlp(m=4096, width=1008))


def test_speedup_is_against_fp32_also_when_fp32_was_not_asked_for() -> None:
    table = estimate_all(mlp(m=16384), [H100], [RECIPES["autocast-bf16"]])["h100"]
    assert table["autocast-bf16"].speedup == pytest.approx(table["fp32"].step_ms / table["autocast-bf16"].step_ms)


def test_contiguous_convolutions_pay_for_transposes_on_tensor_cores_alone() -> None:
    image = tensor(32, 256, 56, 56)
    site = Site("conv", "conv2d", "module", "conv", inputs=(image,), outputs=(image,),
                params=(Param("conv.weight", tensor(256, 256, 3, 3), "w"),), sources=(INPUT,),
                gemms=(Gemm(32 * 56 * 56, 256, 256 * 9),), attrs={"channels_last": False})  # fmt: skip
    last = dataclasses.replace(site, attrs={"channels_last": True})
    contiguous, channels_last = steps(graph_of(site)), steps(graph_of(last))
    assert contiguous["autocast-bf16"] > 1.05 * channels_last["autocast-bf16"]
    assert contiguous["autocast-bf16" + FIXED] == channels_last["autocast-bf16"]
    assert contiguous["fp32"] == channels_last["fp32"]


def test_a_one_by_one_convolution_is_a_product_in_either_layout() -> None:
    image = tensor(32, 256, 56, 56)
    site = Site("conv", "conv2d", "module", "conv", inputs=(image,), outputs=(image,),
                params=(Param("conv.weight", tensor(256, 256, 1, 1), "w"),), sources=(INPUT,),
                gemms=(Gemm(32 * 56 * 56, 256, 256),), attrs={"channels_last": False})  # fmt: skip
    found = steps(graph_of(site))
    assert found["autocast-bf16" + FIXED] == found["autocast-bf16"]


def test_group_norm_gains_nothing_from_channels_last() -> None:
    image = tensor(32, 256, 56, 56)
    site = Site("norm", "group_norm", "module", "norm", inputs=(image,), outputs=(image,), sources=(INPUT,))
    found = steps(graph_of(site))
    assert found["autocast-bf16" + FIXED] > found["autocast-bf16"]


def test_narrow_rows_are_normed_at_the_pace_of_blocks_of_threads() -> None:
    wide, narrow = (
        steps(graph_of(op("#layer_norm.0", "layer_norm", INPUT, shape=shape)), train=False)["fp32"]
        for shape in ((2**14, 2**10), (2**19, 2**5))
    )
    assert narrow > 2 * wide


def test_a_recurrent_layer_launches_kernels_for_every_step() -> None:
    from amptune.core.graph import Gemm, Site
    from tests.analyze.graphs import tensor

    def launches(steps_: int) -> float:
        x = tensor(8, steps_, 64)
        site = Site("gru", "gru", "module", "gru", inputs=(x,), outputs=(x,), sources=(INPUT,),
                    gemms=(Gemm(8, 192, 64, steps_),))  # fmt: skip
        table = estimate_all(graph_of(site), [H100], [RECIPES["fp32"]])["h100"]
        return table["fp32"].launch_ms

    assert launches(400) > 3 * launches(100)


def test_views_and_modules_take_the_processor() -> None:
    plain = op("#relu.0", "relu", INPUT)
    viewed = dataclasses.replace(plain, attrs={"viewed": 5})
    nested = dataclasses.replace(plain, module="a.b.c")
    times = [
        estimate_all(graph_of(site), [H100], [RECIPES["fp32"]])["h100"]["fp32"].launch_ms
        for site in (plain, viewed, nested)
    ]
    assert times[1] > 2 * times[0]
    assert times[2] > times[0]


def test_site_times_add_up_to_the_kernels_of_the_step() -> None:
    graph = mlp(m=16384)
    rows = site_times(graph, H100, STOCK)
    assert [row.gain for row in rows] == sorted((row.gain for row in rows), reverse=True)
    total = sum(row.milliseconds["fp32"] for row in rows)
    assert 0.9 * steps(graph)["fp32"] < total < steps(graph)["fp32"]


def test_compiling_saves_the_pointwise_traffic() -> None:
    sites = [linear("a", INPUT, 16384, 1024, 1024)]
    for index in range(6):
        sites.append(op(f"#gelu.{index}", "gelu", sites[-1].id, shape=(16384, 1024)))
    sites.append(linear("b", sites[-1].id, 16384, 1024, 1024))
    graph = graph_of(*sites)
    eager, compiled = steps(graph)["autocast-bf16"], steps(graph, mode="compile")["autocast-bf16"]
    assert compiled < 0.7 * eager


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_has_a_format(recipe: str) -> None:
    assert RECIPES[recipe].format in Format


def _convolution(op: str, gemm: Gemm, weight: tuple[int, ...], given: tuple[int, ...], made: tuple[int, ...],
                 **attrs: object) -> Site:  # fmt: skip
    return Site("conv", op, "module", "conv", inputs=(tensor(*given),), outputs=(tensor(*made),),
                params=(Param("conv.weight", tensor(*weight), "w"),), sources=(INPUT,), gemms=(gemm,),
                attrs={"channels_last": True, **attrs})  # fmt: skip


def test_a_transposed_convolution_takes_as_long_as_the_convolution_the_other_way() -> None:
    small, large, positions = (32, 128, 32, 32), (32, 64, 64, 64), 32 * 32 * 32
    weight = (128, 64, 4, 4)
    down = _convolution("conv2d", Gemm(positions, 128, 64 * 16), weight, large, small, stride=[2, 2])
    up = _convolution("conv_transpose2d", Gemm(positions, 64 * 16, 128), weight, small, large, stride=[2, 2])
    there, back = steps(graph_of(down)), steps(graph_of(up))
    for recipe in ("fp32", "tf32", "autocast-bf16"):
        assert back[recipe] == pytest.approx(there[recipe], rel=0.03), recipe


def test_a_dilated_convolution_has_no_faster_algorithm_in_fp32() -> None:
    image = (32, 256, 56, 56)
    made = [
        _convolution("conv2d", Gemm(32 * 56 * 56, 256, 256 * 9), (256, 256, 3, 3), image, image, dilation=[each, each])
        for each in (1, 2)
    ]
    dense, dilated = (steps(graph_of(site)) for site in made)
    assert dilated["fp32"] > 1.3 * dense["fp32"]
    assert dilated["autocast-bf16"] == dense["autocast-bf16"]


@pytest.mark.parametrize(
    ("op", "window", "shape", "fixed"),
    [("conv1d", (3,), (32, 256, 3136), False), ("conv3d", (3, 3, 3), (4, 64, 16, 56, 56), True)],
)
def test_sequences_and_volumes_are_transposed_for_tensor_cores_too(
    op: str, window: tuple[int, ...], shape: tuple[int, ...], fixed: bool
) -> None:
    channels = shape[1]
    gemm = Gemm(math.prod(shape) // channels, channels, channels * math.prod(window))
    last = _convolution(op, gemm, (channels, channels, *window), shape, shape)
    first, last = steps(graph_of(dataclasses.replace(last, attrs={"channels_last": False}))), steps(graph_of(last))
    assert first["autocast-bf16"] > 1.05 * last["autocast-bf16"]
    assert first["fp32"] == last["fp32"]
    assert (first["autocast-bf16" + FIXED] == last["autocast-bf16"]) is fixed


def test_adding_a_few_rows_in_place_costs_those_rows() -> None:
    def added(rows: int, in_place: bool) -> float:
        inputs = (tensor(65536, 1024), dataclasses.replace(tensor(rows), dtype="int64"), tensor(rows, 1024))
        site = Site("add", "index_add", "function", "", inputs=inputs, outputs=(inputs[0],), sources=(INPUT,) * 3,
                    attrs={"in_place": in_place})  # fmt: skip
        return sum(row.milliseconds["fp32"] for row in site_times(graph_of(site), H100, STOCK))

    assert added(2048, True) < added(65536, True) / 10
    assert added(2048, False) > 5 * added(2048, True)


def test_a_bag_costs_the_rows_that_it_sums() -> None:
    def looked_up(length: int) -> float:
        ids = dataclasses.replace(tensor(16384, length), dtype="int64", requires_grad=False)
        site = Site("bag", "embedding_bag", "module", "bag", inputs=(ids,), outputs=(tensor(16384, 128),),
                    params=(Param("bag.weight", tensor(1000, 128), "w"),), sources=(INPUT,))  # fmt: skip
        return sum(row.milliseconds["fp32"] for row in site_times(graph_of(site), H100, STOCK))

    assert looked_up(64) > 8 * looked_up(1)


def test_where_the_cost_of_a_launch_is_from() -> None:
    assumed = launch_words(H100, "eager")
    assert assumed.startswith("30 us each (assumed")
    measured = dataclasses.replace(H100, measured=dataclasses.replace(efficiency_of(H100), launch_us=(9.0, 11.0)))
    assert launch_words(measured, "eager") == "10 us each (measured here)"
    assert int(launch_words(H100, "compile").split()[0]) < 32


def _times(site: Site, recipe: str) -> dict[str, float]:
    """Pass -> seconds of one convolution's kernels, transposes included."""
    found: dict[str, float] = {}
    label = "forward"
    kernels = kernels_of(site, realise(graph_of(site), RECIPES[recipe])[site.id], Setting(RECIPES[recipe]))
    for kernel in (*kernels.forward, *kernels.backward):
        label = str(getattr(kernel, "direction", label))
        found[label] = found.get(label, 0.0) + kernel.seconds(H100)
    return found


def _depthwise(channels: int, window: int, side: int, stride: int = 1, *, channels_last: bool = False) -> Site:
    made = side // stride
    return _convolution("conv2d", Gemm(32 * made**2, 1, window**2, channels), (channels, 1, window, window),
                        (32, channels, side, side), (32, channels, made, made), stride=[stride, stride],
                        channels_last=channels_last)  # fmt: skip


def test_the_gradient_of_a_few_channels_takes_as_long_in_every_format() -> None:
    stem = _convolution("conv2d", Gemm(32 * 112**2, 64, 147), (64, 3, 7, 7), (32, 3, 224, 224), (32, 64, 112, 112),
                        stride=[2, 2])  # fmt: skip
    times = [_times(stem, recipe)["input gradient"] for recipe in ("fp32", "tf32", "autocast-bf16")]
    assert times[1:] == pytest.approx([times[0]] * 2, rel=0.25)


def test_torch_computes_contiguous_depthwise_convolutions_but_for_some_in_fp16() -> None:
    def ratio(site: Site) -> float:
        half, full = _times(site, "autocast-fp16"), _times(site, "autocast-bf16")
        return half["input gradient"] / full["input gradient"]

    assert ratio(_depthwise(128, 3, 56)) < 0.7
    for by_torch in (_depthwise(128, 7, 56), _depthwise(128, 3, 56, 2), _depthwise(16, 3, 56)):
        assert ratio(by_torch) == pytest.approx(1.0)
    assert ratio(_depthwise(512, 3, 56, 2)) < 0.7


def test_the_gradient_of_a_strided_depthwise_convolution_reads_every_element() -> None:
    small, large = (_times(_depthwise(128, 5, 64, stride), "fp32") for stride in (2, 1))
    assert small["forward"] < 0.5 * large["forward"]
    assert small["input gradient"] == pytest.approx(large["input gradient"], rel=0.1)


def test_pixels_that_fill_no_load_are_transposed_for_one_tap() -> None:
    def forward(side: int) -> float:
        shape = (64, 1024, side, side)
        site = _convolution("conv2d", Gemm(64 * side**2, 1024, 1024), (1024, 1024, 1, 1), shape, shape,
                            channels_last=False)  # fmt: skip
        return _times(site, "autocast-bf16")["forward"]

    assert forward(14) > 1.3 * forward(16) * (14 / 16) ** 2


def test_the_weight_gradient_of_a_volume_is_slower_in_fp32_than_that_of_an_image() -> None:
    gemm = Gemm(4 * 16 * 28**2, 32, 32 * 27)
    volume = _convolution("conv3d", gemm, (32, 32, 3, 3, 3), (4, 32, 16, 28, 28), (4, 32, 16, 28, 28))
    image = _convolution("conv2d", gemm, (32, 32, 1, 27), (64, 32, 28, 28), (64, 32, 28, 28))
    slow, fast = (_times(site, "fp32")["weight gradient"] for site in (volume, image))
    assert slow > 1.5 * fast


def _norm(channels: int, side: int, *, channels_last: bool = False) -> float:
    image = tensor(32, channels, side, side)
    site = Site("norm", "batch_norm", "module", "norm", inputs=(image,), outputs=(image,),
                params=(Param("norm.weight", tensor(channels), "w"),), sources=(INPUT,),
                attrs={"channels_last": channels_last})  # fmt: skip
    return sum(row.milliseconds["fp32"] for row in site_times(graph_of(site), H100, STOCK))


def test_a_contiguous_batch_norm_of_few_channels_fills_part_of_the_gpu() -> None:
    assert _norm(32, 128) == pytest.approx(2 * _norm(64, 128) / 2, rel=0.05)  # half the bytes at half the rate
    assert _norm(16, 256) > 3 * _norm(16, 256, channels_last=True)
    assert _norm(1024, 32) == pytest.approx(_norm(512, 32) * 2, rel=0.05)


def test_what_runs_beneath_an_op_takes_the_processor_less_than_the_op() -> None:
    one, three = (Move(Traffic.POINTWISE, 1e6, launches=launches).ops for launches in (1, 3))
    assert one == 1
    assert 1 < three < 2.5
    assert Move(Traffic.CAST, 1e6).ops < 0.5
    assert Move(Traffic.CAST, 1e6, launches=2).ops == pytest.approx(2 * Move(Traffic.CAST, 1e6).ops)
    # A library launches its own kernels without torch's dispatcher.
    assert 0 < Move(Traffic.TRANSPOSE, 1e6).ops < Move(Traffic.CAST, 1e6).ops
