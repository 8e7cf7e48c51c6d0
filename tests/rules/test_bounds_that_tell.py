"""Bounds of many terms: those that the batch makes tight, and those that say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

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
