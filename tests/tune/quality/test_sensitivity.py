from __future__ import annotations

import gc
import json
import math

import pytest
import torch
from torch import nn

from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.sensitivity import Sensitivity
from amptune.tune.quality.rounding import SiteCall, to_fp8
from amptune.tune.quality.sensitivity import measure_sensitivity
from tests.tune.conftest import Make

ALL = (FP32, BF16, FP16, *FP8)
SITES = ("embed", "norm", "fc1", "fc2")


def choices_of(*sites: str) -> dict[str, tuple[Choice, ...]]:
    return {site: ALL if site.startswith("fc") else (FP32, BF16, FP16) for site in sites}


def measure(make_bench: Make, source: str | None = None, sites: tuple[str, ...] = SITES) -> Sensitivity:
    bench, batches = make_bench() if source is None else make_bench(source)
    return measure_sensitivity(bench, choices_of(*sites), batches.train[0], seed=0)


def call_of(module: nn.Module, x: torch.Tensor) -> SiteCall:
    output = module(x)
    return SiteCall(module, (x,), {}, [torch.randn_like(output) if output.requires_grad else None])


def test_every_site_gets_its_errors_and_magnitudes(make_bench: Make) -> None:
    found = measure(make_bench)
    assert set(found.sites) == set(SITES)
    for site in found.sites.values():
        # Half a unit in the last place is 2**-9 for BF16 and 2**-12 for FP16; two or three roundings meet in each.
        assert 2**-11 < site.errors[BF16].output < 2**-7
        assert site.errors[FP16].output < site.errors[BF16].output / 4
        assert not site.vetoes
        assert site.gradients.amax_log2 < 0
        assert sum(site.weights.exponents.values()) > 0
    fp8 = found.sites["fc1"].errors[FP8[1]]
    assert found.sites["fc1"].errors[BF16].weight_grad < fp8.weight_grad < 0.2


def test_the_output_error_is_that_of_rounded_operands(make_bench: Make) -> None:
    """Against torch's own matrix product in BF16, which rounds the same operands and accumulates in FP32."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48), torch.randn(32, 64, requires_grad=True)
    call = call_of(layer, x)
    ours = call.rounded(BF16, 1.0).outputs[0]
    theirs = nn.functional.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()).float()
    assert (ours - theirs).abs().max() <= 2**-7 * theirs.abs().max()
    assert torch.equal(call.exact().outputs[0], layer(x).detach())


def test_gradients_are_those_of_autograd(make_bench: Make) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(4, 16, requires_grad=True)
    call = call_of(layer, x)
    layer(x).backward(call.grad_outputs[0])
    exact = call.exact()
    assert x.grad is not None
    assert torch.allclose(exact.input_grads[0], x.grad)
    assert torch.allclose(exact.weight_grads[0], layer.weight.grad)
    for choice in FP8:
        rounded = call.rounded(choice, 1.0)
        for a, b in zip(rounded.weight_grads, exact.weight_grads, strict=True):
            assert (a - b).norm() < 0.15 * b.norm()
        assert (rounded.input_grads[0] - exact.input_grads[0]).norm() < 0.15 * exact.input_grads[0].norm()


def test_a_weight_gradient_kept_in_16_bits_is_closer(make_bench: Make) -> None:
    torch.manual_seed(0)
    call = call_of(nn.Linear(64, 64), torch.randn(64, 64, requires_grad=True))
    exact = call.exact().weight_grads[0]
    rowwise, high = (call.rounded(choice, 1.0).weight_grads[0] for choice in FP8[1:])
    assert (high - exact).norm() < (rowwise - exact).norm() / 4


def test_a_scale_for_each_row_saves_small_rows() -> None:
    x = torch.tensor([[1000.0, 1.0], [1e-4, 1e-5]])
    assert torch.allclose(to_fp8(x, Format.FP8_E4M3, 1), x, rtol=0.07)
    assert to_fp8(x, Format.FP8_E4M3, None)[1].abs().max() == 0


LARGE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 16)
        self.fc2 = nn.Linear(16, 16)
        with torch.no_grad():
            self.fc1.weight.mul_(1e5)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


def make_model():
    return Net()


def make_batch():
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def loss_fn(output, batch):
    return output.square().mean()
"""


def test_what_overflows_is_a_veto_with_its_number(make_bench: Make) -> None:
    found = measure(make_bench, LARGE, ("fc1", "fc2"))
    veto = found.veto("fc1", FP16)
    assert veto.startswith("overflows: the output reaches ")
    assert "fp16 ends at 65,504" in veto
    reached = float(veto.split("reaches ")[1].split(",  ")[0].split(", fp16")[0].replace(",", ""))
    assert 65504 < reached < 1e7
    assert FP16 not in found.sites["fc1"].errors
    assert BF16 in found.sites["fc1"].errors, "BF16 has the range"
    assert not found.veto("fc1", BF16)
    assert not found.veto("fc2", FP16)


def test_a_small_gradient_is_scaled_before_it_is_judged(make_bench: Make) -> None:
    """A loss of 1e-6: without a loss scale every FP16 gradient would be flushed to zero."""
    small = LARGE.replace("output.square().mean()", "output.square().mean() * 1e-8").replace("mul_(1e5)", "mul_(1.0)")
    found = measure(make_bench, small, ("fc1", "fc2"))
    assert found.loss_scale > 2.0**20
    assert found.sites["fc2"].errors[FP16].weight_grad < 0.01


def test_the_model_is_left_as_it_was(make_bench: Make) -> None:
    source = LARGE.replace("self.fc2 = nn.Linear(16, 16)", "self.fc2 = nn.BatchNorm1d(16)")
    bench, batches = make_bench(source)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    measure_sensitivity(bench, {"fc1": ALL, "fc2": (FP32, BF16)}, batches.train[0], seed=0)
    bench.restore()
    after = bench.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in bench.model.modules())
    assert all(parameter.grad is None for parameter in bench.model.parameters())


NORMED = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def make_batch():
    return torch.randn(2, 3, 8, 8), torch.randn(2, 4)


def loss_fn(output, batch):
    return (output - batch[1]).square().mean()
"""


def test_nothing_of_the_pass_stays_in_memory(make_bench: Make) -> None:
    bench, batches = make_bench(NORMED)
    choices = {"0": (BF16,), "1": (BF16,), "4": (BF16,)}
    measure_sensitivity(bench, choices, batches.train[0], seed=0)
    gc.collect()
    gc.disable()
    try:
        before = tensors_alive()
        measure_sensitivity(bench, choices, batches.train[0], seed=0)
        assert tensors_alive() == before
    finally:
        gc.enable()


def tensors_alive() -> int:
    return sum(type(each) is torch.Tensor for each in gc.get_objects())


def test_dropout_inside_a_site_is_the_same_each_time(make_bench: Make) -> None:
    source = LARGE.replace("self.fc2 = nn.Linear(16, 16)", "self.fc2 = nn.LSTM(16, 16, 2, dropout=0.5)").replace(
        "return self.fc2(torch.tanh(self.fc1(x)))", "return self.fc2(torch.tanh(self.fc1(x)))[0]"
    )
    bench, batches = make_bench(source)
    found = measure_sensitivity(bench, {"fc2": (FP32, BF16)}, batches.train[0], seed=0)
    assert found.sites["fc2"].errors[BF16].output < 0.02


def test_an_op_that_overwrites_the_output_changes_nothing(make_bench: Make) -> None:
    plain = LARGE.replace("mul_(1e5)", "mul_(1.0)").replace("torch.tanh(self.fc1(x))", "torch.relu(self.fc1(x))")
    found = measure(make_bench, plain, ("fc1", "fc2"))
    assert set(found.sites) == {"fc1", "fc2"}
    assert measure(make_bench, plain.replace("torch.relu(", "torch.relu_("), ("fc1", "fc2")) == found


def test_a_layer_of_the_users_that_cannot_be_computed_again_has_no_entry(make_bench: Make) -> None:
    source = LARGE.replace("mul_(1e5)", "mul_(1.0)").replace(
        "class Net(",
        """class Own(nn.Linear):
    def forward(self, x):
        assert isinstance(self.weight, nn.Parameter), "called in a way that its author did not think of"
        return super().forward(x)


class Net(""",
    )
    bench, batches = make_bench(source.replace("self.fc1 = nn.Linear(", "self.fc1 = Own("))
    found = measure_sensitivity(bench, {"fc1": ALL, "fc2": ALL}, batches.train[0], seed=0)
    assert set(found.sites) == {"fc2"}


def test_a_large_input_is_sampled(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(make_bench)
    monkeypatch.setattr("amptune.tune.quality.sensitivity.MAX_ROWS", 32)
    sampled = measure(make_bench)
    for choice in (BF16, *FP8):
        a, b = (found.sites["fc1"].errors[choice].output for found in (whole, sampled))
        assert a != b
        assert math.isclose(a, b, rel_tol=0.3)


def test_json(make_bench: Make) -> None:
    found = measure(make_bench, LARGE, ("fc1", "fc2"))
    assert Sensitivity.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.total({"fc1": BF16, "fc2": BF16}) == pytest.approx(
        found.sites["fc1"].errors[BF16].total + found.sites["fc2"].errors[BF16].total
    )
    assert found.total({"fc1": FP32, "elsewhere": BF16}) == 0
