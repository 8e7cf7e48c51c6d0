"""A number that stands several times in a sum: bounds that hold, and that know what cannot be zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from amptune_rules.graph._examples import model_file

from amptune.analyze.runner import enriched
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.recipes import RECIPES

PARTS = """
h = 20 * self.fc(x){cast}
t, s = torch.sigmoid(h[:, 0]), 0.01 + 9 * torch.sigmoid(h[:, 1])
d, e = 0.01 + F.softplus(h[:, 2]), 0.01 + F.softplus(h[:, 3])
a, b = h[:, 2], h[:, 3]
return {formula}
"""
POSITIVE = {
    "ends that never vanish together": "d * t.square() + e * (1 - t).square()",
    "written out": "d * t ** 2 + 2 * s * t * (1 - t) + e * (1 - t) ** 2",
    "the denominator of a spline": "s + (d + e - 2 * s) * t * (1 - t)",
    "one of two": "t * t + (1 - t) * (1 - t)",
    "a spread": "s - s * t * (1 - t)",
    "less a share": "d - 0.5 * t * d",
}
OTHERS = {
    "of both signs": "a * t + b * (1 - t)",
    "squares less their product": "t * t - 2 * t * s + s * s",
    "terms that cancel": "t * t - 2 * t + 1",
    "a row and another": "(d[:, None] * t[:, None] + e[:, None] * (1 - t[None])).flatten()",
    "turned round": "d * t.square() + e * (1 - t.flip(0)).square()",
    "a number less itself": "s * t - t * s + t",
    "a cube": "t * t * t - s * t * t + t",
    "with an alpha": "torch.sub(t * s, t * t, alpha=3.0) + t",
    "a part": "d[:16] * t[:16] + e[:16] * (1 - t[16:])",
    "what goes to zero": "d * t.square() + e * t",
}


def bounds_of(formula: str, cast: str, folder: Path) -> tuple[Range, torch.Tensor]:
    """Bounds of the last site of the forward in FP32, and what it gives for many inputs."""
    file = folder / "model.py"
    file.write_text(model_file(PARTS.format(formula=formula, cast=cast)))
    target = load_target(TargetSpec(str(file)))
    captured = capture(target, train=False)
    graph = enriched(captured)
    ranges = Ranges(graph, realise(graph, RECIPES["fp32"], "cuda"))
    last = [site for site in graph if site.module != "loss_fn"][-1]
    torch.manual_seed(0)
    model = target.make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        values = torch.cat([model(torch.randn(32, 64)).flatten() for _ in range(64)])
    return ranges[last.id], values


@pytest.mark.parametrize("cast", ["", ".bfloat16()"])
@pytest.mark.parametrize("formula", [*POSITIVE.values(), *OTHERS.values()], ids=[*POSITIVE, *OTHERS])
def test_bounds_of_a_shared_number_hold(formula: str, cast: str, tmp_path: Path) -> None:
    bound, values = bounds_of(formula, cast, tmp_path)
    assert bound.low <= values.min().item()
    assert values.max().item() <= bound.high


@pytest.mark.parametrize("formula", POSITIVE.values(), ids=POSITIVE)
def test_what_cannot_be_zero_is_known_to_be_above_it(formula: str, tmp_path: Path) -> None:
    bound, _ = bounds_of(formula, "", tmp_path)
    assert bound.low > 0


@pytest.mark.parametrize("formula", OTHERS.values(), ids=OTHERS)
def test_what_can_be_zero_is_not_kept_from_it(formula: str, tmp_path: Path) -> None:
    bound, _ = bounds_of(formula, "", tmp_path)
    assert bound.low <= 0
