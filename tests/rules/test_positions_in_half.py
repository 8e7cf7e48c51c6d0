"""Angles of positions in 16 bits (G219), and factors so small that FP16 loses what a logarithm reads (G202)."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

RATES = "rates = (10000 ** (-torch.arange(32, device=x.device) / 32))"
PLACES = "places = torch.arange(200, device=x.device)"
BOTH = "return self.fc(x)[:, :32] + turns.cos()[:32] + turns.sin()[:32]"
HALF = ".to(self.fc.weight.dtype)"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (f"{RATES}{HALF}\n{PLACES}{HALF}\nturns = torch.outer(places, rates)\n{BOTH}", 1),
        (f"{RATES}{HALF}\nturns = step[:, None]{HALF} * rates\nreturn self.fc(x)[:, :32] * torch.sin(turns)", 1),
        (f"{RATES}\n{PLACES}.float()\nturns = torch.outer(places, rates)\n{BOTH}{HALF}", 0),
        (f"{RATES}\nturns = step[:, None].float() * rates\nreturn self.fc(x)[:, :32] * torch.sin(turns){HALF}", 0),
        (f"{RATES}{HALF}\n{PLACES}{HALF} / 200\nturns = places[:, None] * rates\n{BOTH}", 0),
    ],
)
def test_angles_of_positions(body: str, count: int, tmp_path: Path) -> None:
    batch = "(torch.randn(32, 64).bfloat16(), torch.arange(0, 224, 7))"
    source = model_file(body, cast=".bfloat16()", takes="x, step", batch=batch)
    assert len(found("G219", source, tmp_path)) == count


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("return torch.log1p(self.fc(x).relu() * 1e-9)", 1),
        ("return torch.log1p(1e-9 * self.fc(x).float().relu())", 0),
        ("return torch.log1p(1e-3 * self.fc(x).relu())", 0),
    ],
)
def test_a_factor_that_leaves_a_logarithm_nothing_to_read(body: str, count: int, tmp_path: Path) -> None:
    assert len(found("G202", model_file(body), tmp_path)) == count
