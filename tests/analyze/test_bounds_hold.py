"""Bounds from ops and literals alone hold for what the forward computes, where relations and samplings meet tensors
that look alike: pairs of all with all, parts, other orders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from amptune_rules.graph._examples import model_file

from amptune.analyze.runner import enriched
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.bounds.ranges import Ranges
from amptune.core.recipes import RECIPES
from tests.analyze.test_bounds_written import bounds_and_output

MEANS = """
h = torch.sigmoid(9 * x[:, :1] + self.fc(x))
squares, mean = (h * h).mean(-1), h.mean(-1)
return {spread}
"""
WINDOWS = """
h = torch.sigmoid(40 * self.fc(x)).view(32, 1, 8, 8)
return {sampled}
"""
ORDERED = """
d = self.fc(x).sort(-1).values
{then}
return d[:, 1:] - d[:, :-1]
"""
SUMS = """
c = (torch.sigmoid(40 * self.fc(x)) + 1).cumsum(1)
return {steps}
"""
REST = """
share = torch.sigmoid(900 * x[:, :1] + self.fc(x))
return {rest}
"""
FORWARDS = {
    "a mean of squares beside another row's mean": MEANS.format(spread="squares[None] - (mean * mean)[:, None]"),
    "less than a square of another row's mean": MEANS.format(spread="squares[None] - 0.5 * (mean * mean)[:, None]"),
    "a mean of squares beside a mean out of order": MEANS.format(spread="squares - mean.flip(0) * mean.flip(0)"),
    "sums that are called averages": WINDOWS.format(
        sampled="F.avg_pool2d(h * h, 2, divisor_override=1) - F.avg_pool2d(h, 2, divisor_override=1) ** 2"
    ),
    "averages over an edge of zeros": WINDOWS.format(sampled="F.avg_pool2d(h + 1, 3, padding=1)"),
    "norms of windows": WINDOWS.format(sampled="F.lp_pool2d(h, 2, 3)"),
    "averages over an edge that is not counted": WINDOWS.format(
        sampled="F.avg_pool2d(h + 1, 3, padding=1, count_include_pad=False)"
    ),
    "an average in a layer": WINDOWS.format(sampled="nn.AvgPool2d(3, padding=1)(h + 1)"),
    "a cubic layer": WINDOWS.format(sampled="nn.Upsample(scale_factor=2.5, mode='bicubic')(h)"),
    "cubic places": WINDOWS.format(
        sampled="F.grid_sample(h, torch.rand(32, 9, 9, 2) * 2 - 1, mode='bicubic', align_corners=False)"
    ),
    "cubic sizes": WINDOWS.format(sampled="F.interpolate(h, scale_factor=2.5, mode='bicubic')"),
    "smeared out": WINDOWS.format(sampled="F.conv_transpose2d(h, torch.ones(1, 1, 5, 5))"),
    "limits that are tensors": ORDERED.format(then="d = d.clamp(min=x)"),
    "written into a part": ORDERED.format(then="d = d.clone()\nd[:, 3] = -9.0"),
    "random numbers times more than a step": ORDERED.format(
        then="d = torch.add(torch.linspace(0.0, 1.0, 64), torch.rand(32, 64) * 0.01, alpha=100)"
    ),
    "a first step from elsewhere": "d = self.fc(x).sort(-1).values\nreturn d.diff(prepend=x[:, :1] + 9)",
    "steps of a sum from behind": SUMS.format(steps="c.flip(1).diff()"),
    "steps of a multiple of a sum from behind": SUMS.format(steps="(2 * c.flip(1)).diff()"),
    "the last of a sum from behind": SUMS.format(steps="c.flip(1)[:, -1:] - c.flip(1)"),
    "steps of a sum": SUMS.format(steps="(2 * c).diff() + c[:, 1:] - c[:, :-1]"),
    "steps of steps": "return torch.sigmoid(40 * self.fc(x)).diff(n=2)",
    "the rest of another line": REST.format(rest="share.sum(-1, keepdim=True).flip(0) + (1 - share).cumsum(-1)"),
    "twice what is taken away": REST.format(
        rest="share.sum(-1, keepdim=True) + torch.sub(1, share, alpha=2).cumsum(-1)"
    ),
    "a rise turned round": "a = 5 * self.fc(x)\nreturn torch.sigmoid(a + 1).flip(0) - torch.sigmoid(a - 1)",
    "a rise from another row": "a = 5 * self.fc(x)[:, 0]\n"
    "up, down = torch.sigmoid(a + 1), torch.sigmoid(a - 1)\nreturn up[:, None] - down[None]",
    "a root of other squares": "a = 5 * self.fc(x)\nreturn a + torch.sqrt(a * a + 1).flip(0)",
    "a share of another row's sum": "a = torch.sigmoid(9 * x[:, :1] + self.fc(x))\n"
    "return a / a.sum(-1, keepdim=True).flip(0)",
    "less another row's maximum": "a = self.fc(x)\nreturn a - a.amax(-1, keepdim=True).flip(0)",
    "less the maxima of rows, read as those of columns": "a = self.fc(x)[:, :32]\nreturn a - a.amax(-1)",
    "exponentials that are summed over another axis": "a = 90 * self.fc(x)\n"
    "return (a - a.amax(0, keepdim=True)).exp().sum(-1)",
    "the largest share of a column": "return (40 * self.fc(x)).softmax(-1).amax(0)",
    "products along another axis": "z = F.normalize(self.fc(x), dim=0)\nreturn z @ z.T",
    "lines repeated": "z = F.normalize(self.fc(x), dim=-1).repeat(1, 9)\nreturn z @ z.T",
    "a norm that is less than its numbers": "return F.normalize(self.fc(x), p=-1, dim=1)",
    "chosen by a mask turned round": "a = self.fc(x)\nreturn torch.where((a > 0).flip(0), a, torch.zeros_like(a))",
    "half a square of what is turned round": "a = self.fc(x)\nreturn (0.5 * a).flip(0) * a",
    "a cosine with another row's norm": "a, b = self.fc(x) * x[:, :1] ** 4, self.fc(-x)\n"
    "return (a * b).sum(-1) / (a.norm(dim=-1).flip(0) * b.norm(dim=-1))",
    "nothing taken away": "a = self.fc(x)\nreturn torch.sub(a, a, alpha=0)",
    "an activation that falls below zero": "return F.elu(self.fc(x).clamp(-3, 1), -2.0)",
    "a softplus below zero": "return F.softplus(self.fc(x), -1.0)",
    "places read as numbers": "return torch.sigmoid(self.fc(x)).sort(-1)[1].float()",
    "whole numbers": "return (1.5 * torch.sigmoid(9 * self.fc(x)) + 0.5).int().float()",
    "a layer of two ops": "return nn.Softmin(dim=-1)(torch.sigmoid(9 * self.fc(x)))",
    "a layer that takes its own function away": "return nn.Tanhshrink()(40 * self.fc(x))",
    "the sum of one number": "h = torch.sigmoid(self.fc(x)).mean() + 1\nreturn (h * h).sum(0) + h.softmax(0).max(0)[0]",
    "a limit by name": "return torch.clamp(self.fc(x).square(), max=x)",
    "an einsum of all with all": "h = torch.sigmoid(self.fc(x))\nreturn torch.einsum('ij,kl->', h, h)",
    "integers the other way round": "return (3 - x.argmax(-1)).float() + 0 * self.fc(x)[:, 0]",
    "maxima of columns, read as those of rows": "a = self.fc(x)[:, :32]\nreturn (a - a.max(0)[0][:, None]).exp()",
    "the largest share of a row of a column's shares": "return (40 * self.fc(x)).softmax(0).max(-1)[0]",
    "deviations of rows, read as those of columns": "a = self.fc(x)[:, :32] * x[:, :1]\n"
    "return (a - a.mean(0)) / a.std(1)",
    "the largest of a segment, read by another index": "i = (64 * x[:, 0].sigmoid()).long() % 8\na = self.fc(x)\n"
    "m = torch.full((8, 64), -9.0).scatter_reduce(0, i[:, None].expand_as(a), a, 'amax')\n"
    "return (a - m[(i + 1) % 8]).exp()",
    "the largest of a segment, read along another axis": "i = (64 * x[:, 0].sigmoid()).long() % 8\n"
    "a = self.fc(x)[:, :32]\nm = torch.full((32, 32), -9.0).scatter_reduce(0, i[:, None].expand_as(a), a, 'amax')\n"
    "return (a - m[:, i]).exp()",
    "the largest of segments, read as it is": "i = torch.zeros(32, dtype=torch.long)\na = self.fc(x)\n"
    "m = torch.full((32, 64), -9.0).scatter_reduce(0, i[:, None].expand_as(a), a, 'amax')\nreturn (a - m).exp()",
    "other integers": "i = (64 * x.sigmoid()).long()\nreturn (i + 1).float() - i.float() + 0 * self.fc(x)",
    "all with all": "a = self.fc(x)[0]\nreturn torch.outer(a, a)",
    "a product that sums nothing": "a = 1 + torch.sigmoid(self.fc(x))[:4, :4]\nreturn torch.kron(a, a)",
    "one number that meets an axis": "a = torch.sigmoid(self.fc(x))\n"
    "return torch.tensordot(a[..., None], a[:2].new_ones(16, 2) + 9, 1)",
    "products along the first axis": "a = torch.sigmoid(self.fc(x)).repeat(8, 1)[:, :2]\n"
    "return torch.linalg.vecdot(a, a, dim=0)",
    "products along the last axis of both": "z = F.normalize(self.fc(x), dim=-1)\n"
    "return torch.inner(z, F.normalize(torch.ones(9, 64), dim=0))",
    "a norm with a computed weight": "return F.layer_norm(self.fc(x), (64,), 40 * x[0])",
    "a norm with a computed weight by name": "return F.rms_norm(self.fc(x), (64,), weight=40 * x[0])",
    "a norm with given statistics": "return F.batch_norm(self.fc(x), torch.zeros(64), torch.full((64,), 1e-4))",
    "a layer with stored statistics": "return nn.BatchNorm1d(64, affine=False).eval()(900 * self.fc(x))",
    "an instance norm with stored statistics": "norm = nn.InstanceNorm1d(32, track_running_stats=True).eval()\n"
    "return norm(900 * self.fc(x)[None])",
    "a quotient of zeros": "a = self.fc(x)\nreturn (1 / (a - a.amax(-1, keepdim=True))).clamp(-9, 9)",
    "a multivariate gamma": "return torch.special.multigammaln(4 + torch.sigmoid(self.fc(x)), 2)",
    "what is left of an error function": "return torch.special.erfc(9 * self.fc(x)) - 1.5 * torch.erf(9 * self.fc(x))",
    "a rise": "a = 5 * self.fc(x)\nreturn torch.sigmoid(a + 1) - torch.sigmoid(a - 1)",
    "a variance": MEANS.format(spread="squares - mean * mean"),
    "a covariance": MEANS.format(spread="(h * h.flip(1)).mean(-1) - mean * h.flip(1).mean(-1)"),
    "what is in order": ORDERED.format(then="d = 2 * d.clamp(min=-1) + 1"),
    "the rest of a line": REST.format(rest="share.sum(-1, keepdim=True) + (1 - share).cumsum(-1)"),
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_bounds_hold_for_the_output(forward: str, tmp_path: Path) -> None:
    source = model_file(forward, init="torch.manual_seed(0)\nself.fc = nn.Linear(64, 64)", loss="output.mean()")
    file = tmp_path / "model.py"
    file.write_text(source)
    captured = capture(load_target(TargetSpec(str(file))))
    graph = enriched(captured)
    ranges = Ranges(graph, realise(graph, RECIPES["fp32"]))
    found = ranges.operand(list(graph)[-1], 0)
    names: dict[str, Any] = {}
    exec(source, names)
    model = names["make_model"]()
    with torch.no_grad():
        output = torch.stack([model(names["make_batch"]()[0]) for _ in range(8)])
    low, high = float(output.min()), float(output.max())
    assert found.low - 1e-4 <= low <= high <= found.high + 1e-4, (found, low, high)


@pytest.mark.parametrize(
    ("forward", "largest"),
    [
        ("h = h.half()\nreturn h * (h * h).sum(-1, keepdim=True).rsqrt()", math.inf),
        ("h = h.half()\nreturn h / h.square().sum(-1, keepdim=True).sqrt()", math.inf),
        ("h = h.half()\nreturn h * (h.square().sum(-1, keepdim=True) + 1e-3).rsqrt()", 1),
        ("h = h.half()\nreturn h / h.norm(dim=-1, keepdim=True)", 1),
        ("return h * (h * h).sum(-1, keepdim=True).rsqrt()", 1),
    ],
)
def test_squares_that_fp16_has_as_zero_bound_nothing(forward: str, largest: float, tmp_path: Path) -> None:
    found, _ = bounds_and_output(f"h = self.fc(x)\n{forward}", "record-fake", tmp_path)
    assert (found.low, found.high) == (-largest, largest)
