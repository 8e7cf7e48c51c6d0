"""Logarithms of determinants (G204), and squares that a weight stands before."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from amptune.core.finding import Severity
from tests.rules.test_written_otherwise import found

INIT = "self.fc = nn.Linear(64, 64)\nself.mix = nn.Parameter(torch.randn(64, 64))\n"
INIT += "self.register_buffer('eye', torch.eye(64))"
ALONE = "with torch.autocast(x.device.type, enabled=False):"


@pytest.mark.parametrize(
    ("body", "severity"),
    [
        ("return y @ self.mix - torch.linalg.det(self.mix.float()).abs().log()", Severity.WARNING),
        (f"{ALONE}\n    return torch.log(2 * torch.det(y.T @ y / 32 + 0.1 * self.eye))", Severity.WARNING),
        (f"{ALONE}\n    return torch.log2((y.T @ y + self.eye)[:24, :24].det())", Severity.INFO),
        (f"{ALONE}\n    return torch.linalg.slogdet(y.T @ y / 32 + 0.1 * self.eye)[1]", None),
        (f"{ALONE}\n    return torch.log1p((y.view(32, 16, 2, 2) + 3 * self.eye[:2, :2]).det().square())", None),
    ],
)
def test_a_logarithm_of_a_determinant(body: str, severity: Severity | None, tmp_path: Path) -> None:
    told = [each.severity for each in found("G204", model_file(f"y = self.fc(x).float()\n{body}", init=INIT), tmp_path)]
    assert told == ([] if severity is None else [severity])


@pytest.mark.parametrize(
    ("size", "message"),
    [("self.mix.exp().sum(0) - self.mix.exp().amax(0)", "below: NaN"), ("self.mix[0].relu()", "log(0) is -inf")],
)
def test_a_logarithm_of_parameters_says_at_which_end_it_breaks(size: str, message: str, tmp_path: Path) -> None:
    (finding,) = found("G204", model_file(f"return self.fc(x) - torch.log({size})", init=INIT), tmp_path)
    assert message in finding.message
    assert ("below" in finding.message) is ("below" in message)


@pytest.mark.parametrize(
    ("spread", "count"),
    [
        ("(p * d * d).sum(-1)", 0),
        ("((d * p) * d).mean(-1)", 0),
        ("torch.mul(d, p.mul(d)).sum(-1)", 0),
        ("(p * d * d.roll(1, 1)).sum(-1)", 1),
        ("(p * d).sum(-1)", 1),
    ],
)
def test_a_weight_before_a_square_leaves_it_a_square(spread: str, count: int, tmp_path: Path) -> None:
    body = f"""
    p = self.fc(x).float().softmax(-1)
    d = torch.tanh(self.fc(x).float()) - p.mean(-1, keepdim=True)
    return torch.sqrt({spread} + 1e-5)
    """
    assert len(found("G206", model_file(body), tmp_path)) == count
