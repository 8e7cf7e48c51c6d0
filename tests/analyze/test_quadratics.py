"""Exponents of two correlated normal variables: a quadratic form that is never negative bounds its exponential."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

DENSITY = """
mx, my, sx, sy, r = self.fc(x).view(32, 8, 8)[:, :5].unbind(1)
dx, dy = x[:, :8] - mx, x[:, 8:16] - my
sx, sy, r = 0.1 + F.softplus(sx), 0.1 + F.softplus(sy), torch.tanh(r)
{formula}
"""
NEVER_NEGATIVE = {
    "quotients squared": "z = (dx / sx) ** 2 + (dy / sy) ** 2 - 2 * r * (dx / sx) * (dy / sy)\n"
    "return torch.exp(-z / 2)",
    "squares of both": "z = dx ** 2 / sx ** 2 + dy ** 2 / sy ** 2 - 2 * r * dx * dy / (sx * sy)\n"
    "return torch.exp(-z / (2 * (1.01 - r ** 2)))",
    "in variables": "a, b = dx / sx, dy / sy\nreturn torch.exp(-0.5 * (a * a - 2 * r * a * b + b * b))",
    "half the way": "return torch.exp(-(dx.square() + dy.square() + r * dx * dy))",
}
OTHERS = {
    "more than the roots": "a, b = dx / sx, dy / sy\nreturn torch.exp(-0.5 * (a * a - 3 * r * a * b + b * b))",
    "another product": "return torch.exp(-(dx.square() + dy.square() - 2 * r * dx * mx))",
    "a difference of squares": "return torch.exp(-(dx.square() - dy.square() - 2 * r * dx * dy))",
    "the other sign": "return torch.exp(dx.square() + dy.square() - 2 * r * dx * dy)",
    "nothing bounds the factor": "return torch.exp(-(dx.square() + dy.square() - 2 * mx * dx * dy))",
    "another row": "return torch.exp(-(dx.square() + dy.square() - 2 * r * dx.flip(0) * dy))",
}


@pytest.mark.parametrize("formula", NEVER_NEGATIVE.values(), ids=NEVER_NEGATIVE)
def test_the_exponent_of_a_density_is_bounded(formula: str, tmp_path: Path) -> None:
    assert not found("G203", model_file(DENSITY.format(formula=formula)), tmp_path)


@pytest.mark.parametrize("formula", OTHERS.values(), ids=OTHERS)
def test_other_exponents_are_not(formula: str, tmp_path: Path) -> None:
    assert len(found("G203", model_file(DENSITY.format(formula=formula)), tmp_path)) == 1
