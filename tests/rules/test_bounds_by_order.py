"""Numbers that their order keeps above zero: shares of bins, steps of sums, products of what is not negative."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_rule_messages import messages


@pytest.mark.parametrize(
    ("bias", "weight", "count"),
    [
        ("self.beta.clamp(min=1e-3)", "self.gamma.clamp(min=0)", 0),
        ("self.beta", "self.gamma.clamp(min=0)", 1),
        ("self.beta.clamp(min=1e-3)", "self.gamma", 1),
    ],
)
def test_a_divisive_norm_is_above_its_bias(bias: str, weight: str, count: int, tmp_path: Path) -> None:
    source = model_file(
        f"return self.fc(x) * torch.rsqrt(F.conv1d((self.fc(x) ** 2)[..., None], {weight}[..., None], {bias}))[..., 0]",
        init="self.fc = nn.Linear(64, 64)\nself.beta = nn.Parameter(torch.ones(64))\n"
        "self.gamma = nn.Parameter(torch.eye(64))",
    )
    assert len(messages("G206", source, tmp_path)) == count


@pytest.mark.parametrize(
    ("upper", "lower", "low"),
    [
        ("torch.erf((h + 0.5) / scale)", "torch.erf((h - 0.5) / scale)", "0"),
        ("torch.sigmoid(scale * (h + 0.5))", "torch.sigmoid(scale * (h - 0.5))", "0"),
        ("torch.sigmoid(h / scale)", "torch.sigmoid((h - 0.5) / scale)", "-1"),
        ("torch.sigmoid((h - 0.5) / scale)", "torch.sigmoid((h + 0.5) / scale)", "-1"),
        ("torch.sigmoid((h + 0.5) / h)", "torch.sigmoid((h - 0.5) / h)", "-1"),
    ],
)
def test_the_share_of_a_bin_is_not_negative(upper: str, lower: str, low: str, tmp_path: Path) -> None:
    forward = f"""
    h = self.fc(x)
    scale = F.softplus(h).clamp(min=0.1)
    return torch.log({upper} - {lower})
    """
    (message,) = messages("G204", model_file(forward), tmp_path)
    assert f"whose values start at {low}:" in message


@pytest.mark.parametrize(
    ("knots", "count"),
    [
        ("F.pad(shares.cumsum(-1), (1, 0)) * 6.0 - 3.0", 0),
        ("2.0 * shares.cumsum(-1)", 0),
        ("F.pad(shares.cumsum(-1), (0, 1))", 1),
        ("-2.0 * shares.cumsum(-1)", 1),
        ("(shares - 0.5).cumsum(-1)", 1),
        ("shares.cumsum(0)", 1),
        ("1e4 * shares.half().cumsum(-1)", 1),
    ],
)
@pytest.mark.parametrize("steps", ["knots[..., 1:] - knots[..., :-1]"])
def test_steps_of_a_sum_are_its_terms(knots: str, count: int, steps: str, tmp_path: Path) -> None:
    forward = f"""
    shares = 1e-3 + 0.9 * self.fc(x).softmax(-1)
    knots = {knots}
    return 1 / ({steps})
    """
    assert len(messages("G205", model_file(forward), tmp_path)) == count


@pytest.mark.parametrize(("sharpness", "count"), [("1 + torch.sigmoid(h[:, :1])", 0), ("h[:, :1]", 1)])
def test_a_power_of_what_is_above_zero_is_above_zero(sharpness: str, count: int, tmp_path: Path) -> None:
    forward = f"""
    h = self.fc(x)
    w = (h.softmax(-1).float() + 1e-6) ** ({sharpness}).float()
    return w / w.sum(-1, keepdim=True)
    """
    assert len(messages("G205", model_file(forward), tmp_path)) == count
