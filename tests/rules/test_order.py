"""Numbers in order along an axis: the distances between samples on a ray, and attenuations over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_rule_messages import messages

DEPTHS = {
    "bins with a random place in each": "bins = torch.linspace(2.0, 6.0, 65, device=x.device)\n"
    "depths = bins[:-1] + torch.rand(32, 64, device=x.device) * (bins[1:] - bins[:-1])",
    "a random share of a step": "depths = torch.linspace(2.0, 6.0, 64, device=x.device)\n"
    "depths = depths + torch.rand(32, 64, device=x.device) * (4.0 / 63)",
    "between the middles": "t = torch.linspace(0.0, 1.0, 64, device=x.device)\n"
    "places = 2.0 * (1 - t) + 6.0 * t\nmiddles = 0.5 * (places[1:] + places[:-1])\n"
    "upper, lower = torch.cat([middles, places[-1:]]), torch.cat([places[:1], middles])\n"
    "depths = lower + (upper - lower) * torch.rand(32, 64, device=x.device)",
    "sorted": "depths = self.fc(x).sort(dim=1).values",
    "sorted, scaled and squashed": "depths = 2 + torch.sigmoid(3 * torch.sort(self.fc(x), -1)[0])",
    "a sum": "depths = F.softplus(self.fc(x)).cumsum(-1)",
}
MIXED = {
    "more than a step": "depths = torch.linspace(2.0, 6.0, 64, device=x.device)\n"
    "depths = depths + torch.rand(32, 64, device=x.device) * 0.1",
    "sorted downwards": "depths = self.fc(x).sort(dim=1, descending=True).values",
    "sorted along the other axis": "depths = self.fc(x).sort(dim=0).values",
    "turned round": "depths = -self.fc(x).sort(dim=1).values",
    "flipped": "depths = self.fc(x).sort(dim=1).values.flip(1)",
    "as they come": "depths = self.fc(x)",
}
ATTENUATION = """
{depths}
gaps = {gaps}
gaps = torch.cat([gaps, torch.full_like(gaps[:, :1], 1e10)], -1)
density = F.relu(self.fc(x))
opacity = 1 - torch.exp(-density * gaps)
weights = opacity * (1 - opacity + 1e-10).cumprod(-1) + 1e-5
return weights / weights.sum(-1, keepdim=True)
"""
STEPS = ("depths[:, 1:] - depths[:, :-1]", "depths[..., 1:] - depths[..., :-1]", "depths.diff(dim=-1)")


def told(depths: str, gaps: str, folder: Path) -> list[str]:
    source = model_file(ATTENUATION.format(depths=depths, gaps=gaps))
    return [message for rule in ("G203", "G205") for message in messages(rule, source, folder)]


@pytest.mark.parametrize("depths", DEPTHS.values(), ids=DEPTHS)
@pytest.mark.parametrize("gaps", STEPS)
def test_an_attenuation_over_depths_in_order_is_bounded(depths: str, gaps: str, tmp_path: Path) -> None:
    assert told(depths, gaps, tmp_path) == []


@pytest.mark.parametrize("depths", MIXED.values(), ids=MIXED)
def test_depths_in_no_known_order_may_have_negative_gaps(depths: str, tmp_path: Path) -> None:
    assert told(depths, STEPS[0], tmp_path)


@pytest.mark.parametrize(
    "gaps",
    ["steps[:, 1:] - steps[:, :-1]", "F.pad(torch.linspace(-1, 1, 62, device=x.device) - 0.1, (1, 0)).expand(32, -1)"],
)
def test_a_factor_of_unknown_sign_is_named(gaps: str, tmp_path: Path) -> None:
    source = model_file(
        f"gaps = {gaps}\nopacity = 1 - torch.exp(-F.relu(self.fc(x))[:, 1:] * gaps)\nreturn 1 / (1.1 - opacity)",
        batch="(torch.randn(32, 64), torch.randn(32, 64))", takes="x, steps",
    )  # fmt: skip
    (message,) = messages("G203", source, tmp_path)
    assert "whose sign no op shows; where that is positive, nothing bounds it: it overflows over 88.72" in message
