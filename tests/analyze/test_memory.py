"""Peak memory against sums that can be done by hand, and against what autograd really keeps."""

from __future__ import annotations

import dataclasses

import pytest

from amptune.analyze.kernels import Setting
from amptune.analyze.memory import ADAM_MOMENTS, WORKSPACE, step_memory
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


@pytest.mark.parametrize(("channels", "copied"), [(64, True), (3, False)])
def test_convolutions_for_tensor_cores_transpose_in_a_workspace(channels: int, copied: bool) -> None:
    shape = (8, 64, 64, 64)
    made = (8, channels, 64, 64)
    layer = Site("conv", "conv2d", "module", "conv", inputs=(tensor(*shape),), outputs=(tensor(*made),),
                 params=(Param("conv.weight", tensor(channels, 64, 3, 3), "w"),), sources=("first",),
                 gemms=(Gemm(8 * 64 * 64, channels, 64 * 9),))  # fmt: skip
    plain, last = (dataclasses.replace(layer, attrs={"channels_last": each}) for each in (False, True))
    more = 4 * 8 * (64 + channels) * 64 * 64 if copied else 0
    assert _peak(plain, "tf32") - _peak(last, "tf32") == more
    assert _peak(plain) == _peak(last)  # in FP32 the kernels read contiguous tensors
