"""Products in an autograd function of the user's own take the time of products, in the format that autocast gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.analyze.estimate import site_times
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES

MODEL = """\
import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd


class Multiply(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda"{cast})
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return {result}

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2048, 2048))

    def forward(self, x):
        return Multiply.apply(x, self.weight)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.plain, self.own = nn.Linear(64, 2048), nn.Linear(2048, 2048, bias=False), Own()

    def forward(self, x):
        return self.own(self.plain(self.first(x)))


def make_model():
    return Net()


def make_batch():
    return torch.randn(4096, 64), None
"""


@pytest.mark.parametrize(
    ("cast", "result", "computes", "gives"),
    [
        ("", "x @ weight.t()", "bfloat16", "bfloat16"),
        ("", "torch.relu(x @ weight.t())", "bfloat16", "bfloat16"),
        ("", "(x @ weight.t()).float()", None, "float32"),
        (", cast_inputs=torch.float32", "x @ weight.t()", "float32", "float32"),
    ],
    ids=["product", "behind it", "cast back", "cast up first"],
)
@pytest.mark.parametrize("frontend", ["export", "record-fake"])
def test_its_products_are_priced(
    frontend: str, cast: str, result: str, computes: str | None, gives: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.py"
    path.write_text(MODEL.format(cast=cast, result=result))
    graph = capture(load_target(TargetSpec(str(path))), frontends=[frontend]).graph
    bf16 = RECIPES["autocast-bf16"]
    dtypes = realise(graph, bf16)["own#Multiply.0"]
    if computes is not None:
        assert (dtypes.compute, dtypes.outputs) == (computes, (gives,))
    times = {each.site.id: each.milliseconds for each in site_times(graph, GPUS["h100"], [bf16])}
    own, plain = times["own#Multiply.0"], times["plain"]
    assert own["fp32"] == pytest.approx(plain["fp32"], rel=0.15)
    if computes is not None:
        assert (own["autocast-bf16"] < 0.2 * own["fp32"]) is (computes == "bfloat16"), "TF32 takes a quarter"
