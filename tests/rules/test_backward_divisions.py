"""Divisions by what can be zero in the backward of a custom autograd function (G205)."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.core.finding import Severity
from tests.rules.test_written_otherwise import found

SOURCE = """
import torch
from torch import nn


class Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, keep):
        y = x.clamp(min=0) * keep
        ctx.save_for_backward(y, keep)
        ctx.width = x.shape[-1]
        return y

    @staticmethod
    def backward(ctx, grad):
        y, keep = ctx.saved_tensors
        {body}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x):
        y = self.fc(x).float()
        return Rescale.apply(y, (x > 0).float()) + Rescale.apply(-y, (x < 0).float())


def make_model():
    return Model()


def make_batch():
    return torch.randn(32, 64), None


def loss_fn(output, batch):
    return output.float().square().mean()
"""


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return grad * keep / y.norm(dim=-1, keepdim=True), None", 1),
        ("share = y.abs()\n        return grad * (share / share.sum(-1, keepdim=True)), None", 1),
        ("size = y.square().mean(1, keepdim=True).sqrt()\n        return torch.div(grad, size), None", 1),
        ("return grad * (1 / torch.linalg.vector_norm(y, dim=-1, keepdim=True)), None", 1),
        ("return grad * keep / (y.norm(dim=-1, keepdim=True) + 1e-6), None", 0),
        ("return grad * keep / y.norm(dim=-1, keepdim=True).clamp(min=1e-6), None", 0),
        ("share = y.exp()\n        return grad * (share / share.sum(-1, keepdim=True)), None", 0),
        ("return grad / ctx.width, None", 0),
        ("return grad / (1 + y.abs()) ** 2, None", 0),
        ("size = y.norm(dim=-1, keepdim=True)\n        return torch.where(size > 0, grad / size, 0.0), None", 0),
    ],
)
def test_a_division_in_a_backward(body: str, count: int, tmp_path: Path) -> None:
    source = SOURCE.replace("{body}", body).lstrip()
    told = [each for each in found("G205", source, tmp_path) if "the backward of" in each.message]
    assert [each.severity for each in told] == [Severity.INFO] * count
    for each in told:
        assert (
            "/" in source.splitlines()[each.location.line - 1] or "div" in source.splitlines()[each.location.line - 1]
        )


def test_a_division_in_a_backward_of_a_forward_that_runs_for_real(tmp_path: Path) -> None:
    source = SOURCE.replace("{body}", "return grad * keep / y.norm(dim=-1, keepdim=True), None").lstrip()
    source = source.replace("y = self.fc(x).float()", "y = self.fc(x).float()\n        assert x.tolist()")
    assert [each for each in found("G205", source, tmp_path) if "the backward of" in each.message]


SAVED = """
        size = {size}
        ctx.save_for_backward(y, size)
        return y / (1 + size)

    @staticmethod
    def backward(ctx, grad):
        y, size = ctx.saved_tensors
        return grad * y / size, None
"""


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("y.norm(dim=-1, keepdim=True)", 1),
        ("y.square().sum(-1, keepdim=True).sqrt()", 1),
        ("y.norm(dim=-1, keepdim=True) + 1e-6", 0),
        ("torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min(1e-6)", 0),
        ("y.exp().sum(-1, keepdim=True)", 0),
    ],
)
@pytest.mark.parametrize("is_real", [False, True])
def test_a_division_in_a_backward_by_what_the_forward_saves(
    size: str, count: int, is_real: bool, tmp_path: Path
) -> None:
    head, rest = SOURCE.split("        ctx.save_for_backward(y, keep)", 1)
    source = head.lstrip() + SAVED.replace("{size}", size).removeprefix("\n") + rest[rest.index("\n\nclass Model") :]
    if is_real:
        source = source.replace("y = self.fc(x).float()", "y = self.fc(x).float()\n        assert x.tolist()")
    told = [each for each in found("G205", source, tmp_path) if "the backward of" in each.message]
    assert len(told) == count
    assert all("grad * y / size" in source.splitlines()[each.location.line - 1] for each in told)


def test_a_forward_that_is_given_its_context_afterwards(tmp_path: Path) -> None:
    source = SOURCE.replace("{body}", "return grad * keep / ctx.saved_tensors[2], None").lstrip()
    source = source.replace("def forward(ctx, x, keep):", "def forward(x, keep):").replace(
        "        ctx.save_for_backward(y, keep)\n        ctx.width = x.shape[-1]\n        return y\n",
        "        return y, y.norm(dim=-1, keepdim=True)\n\n    @staticmethod\n"
        "    def setup_context(ctx, inputs, output):\n        ctx.save_for_backward(output[0], inputs[1], output[1])\n",
    )
    source = source.replace("def backward(ctx, grad):", "def backward(ctx, grad, _):").replace(
        "y, keep = ctx.saved_tensors\n", "y, keep, _ = ctx.saved_tensors\n"
    )
    source = source.replace("return Rescale.apply(y, (x > 0).float()) + Rescale.apply(-y, (x < 0).float())",
                            "return Rescale.apply(y, (x > 0).float())[0]")  # fmt: skip
    assert [each for each in found("G205", source, tmp_path) if "the backward of" in each.message]
