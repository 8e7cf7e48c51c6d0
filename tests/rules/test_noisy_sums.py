"""Roots of states that a step with noise takes below zero (G206)."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

LOOP = """
level = F.softplus(self.fc(x).float())
for step in range(3):
    {step}
return level
"""


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (LOOP.format(step="level = level + 0.1 * (1 - level) + 0.3 * level.sqrt() * kicks[:, step]"), 1),
        (LOOP.format(step="level = level - 0.1 * level + torch.sqrt(level) * (torch.randn_like(level) * 0.2)"), 1),
        (LOOP.format(step="level = level + 0.3 * level.clamp(min=1e-6).sqrt() * kicks[:, step]"), 0),
        (LOOP.format(step="level = (level + 0.3 * level.sqrt() * kicks[:, step]).abs() + 1e-6"), 0),
        (LOOP.format(step="level = level + 0.3 * (level + 1e-6).sqrt() * kicks[:, step].square()"), 0),
        ("a, b = self.fc(x).float(), kicks[:, 0]\nreturn torch.sqrt(a * a + b * b - 2 * a * b)", 0),
        ("a, b, c = self.fc(x), self.fc(-x), kicks[:, 0]\nreturn torch.sqrt(a * a + b * b - 2 * a * b * c)", 0),
        ("a = torch.tanh(self.fc(x).float())\nreturn torch.sqrt(30 + a * kicks[:, 0])", 0),
    ],
)
def test_a_root_of_a_state_with_noise(body: str, count: int, tmp_path: Path) -> None:
    batch = "(torch.randn(32, 64), torch.randn(32, 3, 64).clamp(-4, 4))"
    told = found("G206", model_file(body, takes="x, kicks", batch=batch), tmp_path)
    assert len({each.location.line for each in told if "noise" in each.message}) == count
