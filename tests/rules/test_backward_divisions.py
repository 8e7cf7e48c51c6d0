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
