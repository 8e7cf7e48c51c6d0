"""Peak memory against sums that can be done by hand, and against what autograd really keeps."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from amptune.analyze.stepcost.convolutions import workspace
from amptune.analyze.stepcost.kernels import Setting
from amptune.analyze.stepcost.memory import ADAM_MOMENTS, WORKSPACE, Memory, step_memory
from amptune.core.autocast import realise
from amptune.core.graph import INPUT, Gemm, Param, Site
from amptune.core.recipes import RECIPES
from tests.analyze.graphs import graph_of, linear, mlp, op, tensor


def test_parameters_gradients_and_moments() -> None:
    found = step_memory(
        (graph := mlp(m=8, width=64, layers=2)), realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"])
    )
    weights = 2 * 64 * 64 * 4
    assert (found.params, found.gradients, found.optimizer) == (weights, weights, ADAM_MOMENTS * weights)
    assert found.peak > 4 * weights + WORKSPACE


def test_activations_of_relu_layers_are_kept_once() -> None:
    """A relu saves its output, which the next linear reads: one tensor. The linear's own output is gone."""
    graph = mlp(m=1000, width=16, layers=4)
    found = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"]))
    assert found.activations == 4 * 1000 * 16 * 4


def test_autocast_keeps_half_of_it_and_a_copy_of_the_weights() -> None:
    graph = mlp(m=1000, width=16, layers=4)
    found = step_memory(graph, realise(graph, RECIPES["autocast-bf16"]), Setting(RECIPES["autocast-bf16"]))
    activations, weights, first_input = 4 * 1000 * 16 * 2, 4 * 16 * 16 * 2, 1000 * 16 * 2
    assert found.activations == activations + weights + first_input


def test_inference_keeps_no_states() -> None:
    graph = mlp(m=8, width=64)
    found = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"], train=False))
    assert (found.gradients, found.optimizer) == (0, 0)


def test_a_tied_weight_counts_once() -> None:
    first = linear("a", INPUT, 8, 16, 16)
    second = dataclasses.replace(linear("b", "a", 8, 16, 16), params=first.params)
    found = step_memory((graph := graph_of(first, second)), realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"]))
    assert found.params == 16 * 16 * 4


def test_params_bf16_halves_the_states() -> None:
    graph = mlp(m=8, width=64, layers=2)
    half = step_memory(graph, realise(graph, RECIPES["params-bf16"]), Setting(RECIPES["params-bf16"]))
    full = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"]))
    assert half.params * 2 == full.params
    assert half.optimizer * 2 == full.optimizer


def test_a_compiled_chain_keeps_only_what_products_read() -> None:
    sites = [linear("a", INPUT, 4096, 64, 64)]
    for index in range(8):
        sites.append(op(f"#gelu.{index}", "gelu", sites[-1].id, shape=(4096, 64)))
    sites.append(linear("b", sites[-1].id, 4096, 64, 64))
    graph = graph_of(*sites)
    dtypes = realise(graph, RECIPES["fp32"])
    eager = step_memory(graph, dtypes, Setting(RECIPES["fp32"]))
    compiled = step_memory(graph, dtypes, Setting(RECIPES["fp32"], fused=True))
    assert compiled.activations < 0.5 * eager.activations


@pytest.mark.parametrize("depth", [2, 6])
def test_saved_bytes_are_those_of_autograd(depth: int) -> None:
    """Counted with torch's own hooks on the same layers: linear, relu, sigmoid."""
    import torch
    from torch import nn

    layers = [module for _ in range(depth) for module in (nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Sigmoid())]
    kept: dict[int, int] = {}
    model = nn.Sequential(*layers)
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    x = torch.randn(64, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = model(x)
    kept.pop(x.untyped_storage().data_ptr())
    sites, source = [], INPUT
    for index in range(depth):
        sites += [
            linear(f"l{index}", source, 64, 32, 32, grad=index > 0),
            op(f"#relu.{index}", "relu", f"l{index}", shape=(64, 32)),
            op(f"#sigmoid.{index}", "sigmoid", f"#relu.{index}", shape=(64, 32)),
        ]
        source = sites[-1].id
    graph = graph_of(*sites)
    found = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"]))
    assert output.shape == (64, 32)
    assert found.activations == sum(kept.values())


@pytest.mark.parametrize(("start", "states"), [("start", 100), ("", 99)], ids=["computed", "zeros"])
def test_steps_of_a_loop_share_what_they_read_slices_of(start: str, states: int) -> None:
    """``state = decay[i] * state``: each step keeps the state it began with, and all of them the one ``decay``."""
    shape, size = (100, 1000), 4 * 100 * 1000
    step = op("step", "mul", "decay", start, shape=shape, later_sources=(("decay", "step"),))
    graph = graph_of(
        op("decay", "exp", INPUT, shape=shape),
        op("start", "relu", INPUT, shape=shape),
        dataclasses.replace(step, calls=100),
    )
    found = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"]))
    assert found.activations == (1 + states + 1 + (not start)) * size  # decay, states, the result, an unread start


def test_the_loss_of_half_logits_keeps_both_copies_of_their_softmax() -> None:
    """log_softmax runs in 16 bits and its output is kept; the cast of it to FP32 is kept by the loss itself."""
    logits, rows, vocab = "head", 512, 4096
    graph = graph_of(linear(logits, INPUT, rows, 16, vocab), op("#cross_entropy.0", "cross_entropy", logits,
                                                               shape=(rows, vocab)))  # fmt: skip
    kept = {
        name: step_memory(graph, realise(graph, RECIPES[name]), Setting(RECIPES[name])).activations
        for name in ("fp32", "autocast-bf16")
    }
    extra = kept["autocast-bf16"] - kept["fp32"]
    assert extra == pytest.approx(rows * vocab * 2, rel=0.05)


def _peak(site: Site, recipe: str = "fp32") -> int:
    graph = graph_of(op("first", "relu", INPUT, shape=site.inputs[0].shape), site)
    return step_memory(graph, realise(graph, RECIPES[recipe]), Setting(RECIPES[recipe], holds_output=False)).peak


def test_the_gradient_of_a_broadcast_operand_is_whole_until_it_is_summed() -> None:
    shape = (4096, 256)
    column = dataclasses.replace(op("scaled", "mul", "first", "first", shape=shape),
                                 inputs=(tensor(*shape), tensor(4096, 1)))  # fmt: skip
    fixed = dataclasses.replace(column, inputs=(tensor(*shape), tensor(4096, 1, grad=False)))
    assert _peak(column) - _peak(fixed) == 4 * 4096 * 256


def _convolution(inputs: int, outputs: int, **attrs: object) -> Site:
    return Site("conv", "conv2d", "module", "conv", inputs=(tensor(8, inputs, 64, 64),),
                outputs=(tensor(8, outputs, 64, 64),), sources=("first",), attrs=attrs,
                params=(Param("conv.weight", tensor(outputs, inputs, 3, 3), "w"),),
                gemms=(Gemm(8 * 64 * 64, outputs, inputs * 9),))  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "outputs", "copied"), [(64, 64, 128), (64, 3, 64 + 4), (3, 64, 0)], ids=["many", "to few", "from few"]
)
def test_convolutions_for_tensor_cores_transpose_in_a_workspace(inputs: int, outputs: int, copied: int) -> None:
    """Channels of the result are filled up to a load of 16 bytes; colours have kernels that read them as they are."""
    found = [
        workspace(site, dtypes, Setting(RECIPES["tf32"]), backward=True)
        for last in (False, True)
        for site in [_convolution(inputs, outputs, channels_last=last)]
        for dtypes in [realise(graph_of(site), RECIPES["tf32"])["conv"]]
    ]
    assert found == [copied * 4 * 8 * 64 * 64, 0]


def test_workspaces_are_those_of_measured_convolutions() -> None:
    """All dense ones of one group that were measured on contiguous tensors, but for FP32's by Fourier transforms."""
    file = Path(__file__).parents[2] / "benchmarks" / "reports" / "kernels_further_h200.json"
    errors = []
    for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        if "bytes" in row and row["format"] in ("fp32", "tf32", "bf16") and _is_comparable(row):
            item = 2 if row["format"] == "bf16" else 4
            sides, (inputs, outputs) = row["sides"], (row["inputs"], row["outputs"])
            pixels = row["batch"] * math.prod(sides)
            attrs = {"channels_last": False, "stride": [1] * len(sides), "dilation": [row["dilation"]] * len(sides)}
            site = Site("conv", f"conv{len(sides)}d", "module", "conv", sources=(INPUT,), attrs=attrs,
                        inputs=(tensor(row["batch"], inputs, *sides),),
                        outputs=(tensor(row["batch"], outputs, *sides),),
                        params=(Param("w", tensor(outputs, inputs, *row["kernel"]), "w"),),
                        gemms=(Gemm(pixels, outputs, inputs * math.prod(row["kernel"])),))  # fmt: skip
            recipe = RECIPES["autocast-bf16" if item == 2 else row["format"]]
            dtypes = realise(graph_of(site), recipe)["conv"]
            found = workspace(site, dtypes, Setting(recipe), backward=True)
            taken = row["bytes"]["weight"] - inputs * outputs * math.prod(row["kernel"]) * item
            errors.append((found - taken) / (pixels * (inputs + outputs) * item))
    assert len(errors) > 20
    assert sum(abs(error) < 0.25 for error in errors) >= 0.9 * len(errors)


def _is_comparable(row: dict[str, Any]) -> bool:
    plain = not (row["transposed"] or row["channels_last"]) and row["stride"] == row["groups"] == 1
    return plain and not (row["format"] == "fp32" and len(row["sides"]) == 3) and row["kernel"] != [5, 5]


def test_each_call_of_a_shared_layer_keeps_what_it_makes_itself() -> None:
    """Casts and dropout masks are made anew in each call; the cast copy of a weight is made once."""
    shape = (1000, 512)
    once = op("drop", "dropout", "first", shape=shape, p=0.5)
    kept = [
        step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"])).activations
        for site in (once, dataclasses.replace(once, calls=3))
        for graph in [graph_of(op("first", "relu", INPUT, shape=shape), site)]
    ]
    assert kept[1] - kept[0] == 2 * 1000 * 512


def test_the_batch_is_in_memory_too() -> None:
    read = op("first", "relu", INPUT, shape=(1000, 512))
    named = dataclasses.replace(read, attrs={"batch": {0: "x"}})
    again = op("again", "relu", INPUT, shape=(1000, 512), batch={0: "x"})
    peaks = [
        step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"])).peak
        for graph in (graph_of(read, again), graph_of(named, again))
    ]
    assert peaks[0] == peaks[1]  # it is one tensor, however many read it
    alone = graph_of(read), graph_of(named)
    found = [step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"])).peak for graph in alone]
    assert found[1] - found[0] == 4 * 1000 * 512


def _step(*sites: Site, recipe: str = "fp32") -> Memory:
    graph = graph_of(*sites)
    return step_memory(graph, realise(graph, RECIPES[recipe]), Setting(RECIPES[recipe], holds_output=False))


@pytest.mark.parametrize(
    ("module", "held"),
    [("mlp", True), ("layers.1.mlp", True), ("", False)],
    ids=["module", "block of a list", "same forward"],
)
def test_what_a_module_is_handed_is_there_until_it_returns(module: str, held: bool) -> None:
    """``self.mlp(torch.exp(x) + 1)``: the sum is the argument of a call that is under way, though nobody reads it any
    more."""
    size = 4 * 1000 * 512
    small = [dataclasses.replace(op(f"{module}#{kind}.0", kind, source, shape=(1000, 512)), module=module)
             for kind, source in (("neg", "sum"), ("clone", f"{module}#neg.0"))]  # fmt: skip
    wide = dataclasses.replace(
        op(f"{module}#cat.0", "cat", f"{module}#clone.0", shape=(1000, 512)),
        module=module, outputs=(tensor(1000, 4096),),
    )  # fmt: skip
    start = dataclasses.replace(op("sum", "add", INPUT, shape=(1000, 512)), inputs=(tensor(1000, 512, grad=False),),
                                outputs=(tensor(1000, 512, grad=False),))  # fmt: skip
    graph = graph_of(start, *small, wide)
    setting = Setting(RECIPES["fp32"], train=False)
    peak = step_memory(graph, realise(graph, RECIPES["fp32"]), setting).peak - WORKSPACE
    assert peak == (1 + held) * size + 4 * 1000 * 4096


def test_layers_of_a_list_that_are_called_one_by_one_hold_nothing() -> None:
    """A list of blocks has no forward whose argument the embedding's result could be."""

    def block(number: int, source: str) -> list[Site]:
        return [dataclasses.replace(op(f"layers.{number}#neg.0", "neg", source, shape=(1000, 512)),
                                    module=f"layers.{number}")]  # fmt: skip

    first = op("start", "neg", INPUT, shape=(1000, 512))
    chain = [first, *block(0, "start"), *block(1, "layers.0#neg.0"), *block(2, "layers.1#neg.0")]
    graph = graph_of(*chain)
    peak = step_memory(graph, realise(graph, RECIPES["fp32"]), Setting(RECIPES["fp32"], train=False)).peak - WORKSPACE
    assert peak == 2 * 4 * 1000 * 512


def test_two_calls_that_one_op_reads_are_two_tensors() -> None:
    """Keys and values that are repeated for the heads of the queries, by one line of a function."""
    shape = (1000, 512)
    repeated = dataclasses.replace(op("repeated", "clone", INPUT, shape=shape), calls=2)
    both = op("product", "mul", "repeated", "repeated", shape=shape)
    kept = [_step(dataclasses.replace(repeated, calls=calls), both).activations for calls in (1, 2)]
    assert kept[1] - kept[0] == 4 * 1000 * 512


@pytest.mark.parametrize(("kind", "handed_on"), [("add", 2), ("sub", 1), ("cat", 2), ("maximum", 0)])
def test_sums_and_joins_hand_their_gradient_on(kind: str, handed_on: int) -> None:
    """As it is, or in views of it; others make one for each operand."""
    shape, size = (1000, 512), 4 * 1000 * 512
    sides = [op(name, "exp", INPUT, shape=shape) for name in ("left", "right")]
    joined = op("joined", kind, "left", "right", shape=shape)
    if kind == "cat":
        joined = dataclasses.replace(joined, outputs=(tensor(1000, 1024),))
    last = dataclasses.replace(op("last", "mean", "joined", shape=joined.outputs[0].shape), outputs=(tensor(1),))
    peak = _step(*sides, joined, last).peak - WORKSPACE
    of_joined = joined.outputs[0].numel * 4
    assert peak == pytest.approx(2 * size + of_joined + (2 - handed_on) * size, abs=1024)
