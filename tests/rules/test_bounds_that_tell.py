"""Bounds of many terms: those that the batch makes tight, and those that say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from amptune_rules.graph._examples import model_file

from amptune.core.bounds.intervals import Range
from amptune.core.bounds.transfer.activations import sigmoid
from amptune.core.graph import Site
from tests.rules.test_written_otherwise import found

FOCAL = "p = torch.sigmoid(self.fc(x))\nhit = p * kind + (1 - p) * (1 - kind)\nreturn {root}"
KINDS = {"classes": "(torch.rand(32, 64) > 0.9).float()", "numbers": "torch.randn(32, 64)"}
SPLINE = """
h = self.fc(x).float()
width, height = 1e-3 + 0.5 * torch.sigmoid(h), 1e-3 + torch.sigmoid(-h)
t, delta = (x.clamp(-3, 3) - torch.tanh(h)) / width, height / width
d0, d1 = 1e-3 + F.softplus(h), 1e-3 + F.softplus(-h)
return torch.log(delta**2 * (d1 * t * t + 2 * delta * t * (1 - t) + d0 * (1 - t) ** 2))
"""


@pytest.mark.parametrize(
    ("root", "kind", "words"),
    [
        ("(1 - hit) ** 0.5", "classes", "exactly zero"),
        ("torch.sqrt(1 - hit)", "classes", "exactly zero"),
        ("(2 - hit) ** 0.5", "classes", ""),
        ("(1 - hit) ** 0.5", "numbers", "below zero"),
    ],
)
def test_a_root_of_what_is_left_of_a_share(root: str, kind: str, words: str, tmp_path: Path) -> None:
    source = model_file(
        FOCAL.format(root=root), takes="x, kind", batch=f"(torch.randn(32, 64), {KINDS[kind]})", loss="output.mean()"
    )
    messages = [each.message for each in found("G206", source, tmp_path)]
    assert [words in each for each in messages] == [True] * bool(words)


def test_a_bound_that_many_terms_blow_up_is_no_end_of_a_logarithm(tmp_path: Path) -> None:
    assert not found("G204", model_file(SPLINE), tmp_path)
    assert found("G204", model_file("return torch.log(torch.tanh(self.fc(x).float()))"), tmp_path)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return torch.log(torch.sigmoid(self.fc(x).float().clamp(-10, 10)))", 0),
        ("return torch.log(1 - torch.sigmoid(self.fc(x).float().clamp(-9, 9)))", 0),
        ("return torch.log(torch.sigmoid(8 * torch.tanh(self.fc(x).float())))", 0),
        ("return torch.log(1 - torch.sigmoid(self.fc(x).float().clamp(-30, 30)))", 1),
        ("return torch.log(torch.sigmoid(self.fc(x).float().clamp(min=-200)))", 1),
        ("return torch.log(torch.sigmoid(self.fc(x).float().clamp(max=5)))", 1),
    ],
)
def test_a_share_of_a_clamped_logit_is_off_its_ends(body: str, count: int, tmp_path: Path) -> None:
    assert len(found("G204", model_file(body), tmp_path)) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bounds_of_a_sigmoid_hold(dtype: torch.dtype) -> None:
    site = Site("s", "sigmoid", "function", "", inputs=(), outputs=())
    for low, high in ((-12.0, -3.0), (-100.0, 2.5), (-88.0, -80.0), (5.0, 20.0), (-0.5, 0.25), (-400.0, 400.0)):
        x = torch.linspace(low, high, 4001).to(dtype)
        bound = sigmoid(site, [Range(float(x.min()), float(x.max()))])
        seen = torch.sigmoid(x)
        assert torch.tensor(bound.low).to(dtype) <= seen.min()
        assert seen.max() <= torch.tensor(bound.high).to(dtype)
