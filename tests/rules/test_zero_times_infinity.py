"""Masks that are multiplied with infinity: 0 * inf is NaN (G205)."""

from __future__ import annotations

from pathlib import Path

import pytest
from amptune_rules.graph._examples import model_file

from tests.rules.test_written_otherwise import found

OF_BATCH = {
    "kept": "(torch.randn(32, 64), (torch.arange(2048).view(32, 64) % 5 > 0).float())",
    "truths": "(torch.randn(32, 64), torch.arange(2048).view(32, 64) % 5 > 0)",
}

SCORES = "y = self.fc(x)\nreturn (y.T @ y + far).float().softmax(-1)"


@pytest.mark.parametrize(
    ("body", "batch", "count"),
    [
        ("return (self.fc(x).float() + (1 - kept) * float('-inf')).softmax(-1)", "kept", 1),
        ("return (self.fc(x).float() + (1.0 - kept.float()).mul(-torch.inf)).softmax(-1)", "truths", 1),
        ("return (self.fc(x).float() + ~kept * -math.inf).amax(-1)", "truths", 1),
        (f"far = torch.triu(torch.ones(64, 64, device=x.device), diagonal=1) * float('-inf')\n{SCORES}", "kept", 1),
        ("shut = torch.full_like(x, float('-inf')) * (self.fc(x) < 0.1)\nreturn (x + shut).logsumexp(-1)", "kept", 1),
        (f"far = torch.triu(torch.full((64, 64), float('-inf'), device=x.device), diagonal=1)\n{SCORES}", "kept", 0),
        ("return (self.fc(x).float() + (1 - kept) * -1e9).softmax(-1)", "kept", 0),
        ("return (self.fc(x).float() + (1 - kept) * torch.finfo(torch.float32).min).softmax(-1)", "kept", 0),
        ("return torch.where(kept, self.fc(x), (~kept) * float('-inf')).softmax(-1)", "truths", 0),
        ("return self.fc(x) + ((1 - kept) * float('-inf')).nan_to_num(0.0, neginf=-1e9)", "kept", 0),
        ("return (self.fc(x).float() + (1 + kept) * float('-inf')).amax(-1).clamp(min=-1)", "kept", 0),
    ],
)  # fmt: skip
def test_a_mask_times_infinity(body: str, batch: str, count: int, tmp_path: Path) -> None:
    source = "import math\n\n" + model_file(body, takes="x, kept", batch=OF_BATCH[batch])
    assert len([each for each in found("G205", source, tmp_path) if "infinity" in each.message]) == count


def test_a_mask_in_a_loop_is_told_once(tmp_path: Path) -> None:
    body = """
    best = torch.zeros(32, device=x.device)
    for step in range(4):
        open_now = kept.roll(step, 0)
        best = torch.maximum(best, (self.fc(x) + float('-inf') * (1 - open_now)).amax(-1))
    return best
    """
    (finding,) = found("G205", model_file(body, takes="x, kept", batch=OF_BATCH["kept"]), tmp_path)
    assert finding.evidence["zeros"] > 0


CHOSEN = "chosen = torch.arange(32, device=x.device) * 7 % 64\nopen_now = torch.ones_like(x, dtype=torch.bool)\n"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (("open_now[:, ::3] = False\ny = self.fc(x).masked_fill(~open_now, -math.inf).log_softmax(-1)\n"
         "return (y[torch.arange(32), chosen] * (chosen % 3 > 0)).sum()"), 1),
        (("open_now &= kept\ny = torch.where(open_now, self.fc(x), -math.inf)\n"
         "return (y.gather(1, chosen[:, None]).squeeze(1) * kept.float().gather(1, chosen[:, None])[:, 0]).sum()"), 1),
        (("open_now[..., 1::2] &= kept[:, 1::2]\nopen_now[:, 0] = True\n"
         "return (kept * self.fc(x).masked_fill(~open_now, -math.inf).log_softmax(1)).sum()"), 1),
        (("open_now[:, ::3] = False\ny = self.fc(x).masked_fill(~open_now, -math.inf).log_softmax(-1)\n"
         "return (y[torch.arange(32), chosen] * (1 + chosen % 3)).sum()"), 0),
        (("open_now[:, ::3] = False\ny = self.fc(x).masked_fill(~open_now, -1e4).log_softmax(-1)\n"
         "return (y[torch.arange(32), chosen] * (chosen % 3 > 0)).sum()"), 0),
        (("open_now[:, ::3] = False\nopen_now[:, ::3] = True\n"
         "return (kept * self.fc(x).masked_fill(~open_now, -math.inf).log_softmax(1)).sum()"), 0),
        (("open_now &= kept\ny = self.fc(x).masked_fill(~open_now, -math.inf).log_softmax(-1)\n"
         "return torch.where(kept, y * kept, 0.0).sum()"), 0),
        (("early = open_now.float()\nopen_now &= kept\ny = self.fc(x).masked_fill(early == 0, -math.inf)\n"
         "return (y.log_softmax(1) * kept).sum() + open_now.sum()"), 0),
    ],
)  # fmt: skip
def test_a_mask_times_the_logarithm_of_a_share_that_another_mask_closes(body: str, count: int, tmp_path: Path) -> None:
    source = "import math\n\n" + model_file(CHOSEN + body, takes="x, kept", batch=OF_BATCH["truths"])
    assert len([each for each in found("G205", source, tmp_path) if "infinity" in each.message]) == count
