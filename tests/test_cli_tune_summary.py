"""What tune prints at its end: the parts that depend on how the winner was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from amptune.commands.tune import summary
from amptune.tune.finals import Verdict
from amptune.tune.run import TuneResult
from amptune.tune.study import TrialRecord
from amptune.tune.timing import StepTime

from .report.tune_sample import plan, won

STEP = StepTime.of([85.0, 85.5, 86.0])


def _summary(**fields: Any) -> str:
    rest = {"repeated": True, "objective": "time", "not_measured": [], "stopped": "budget", "launch_bound": False}
    record = cast("TrialRecord", None)  # what is printed of trials is in the data
    verdict = Verdict("plan", record, STEP, record, STEP, 1.39, 1.36)
    return summary(TuneResult(won(**rest | fields), plan(), verdict, {"patched": Path("net_amptuned.py")}))


@pytest.mark.parametrize(
    ("launch_ms", "is_told"), [(70.0, True), (40.0, False), (None, False)], ids=["most", "half", "not known"]
)
def test_a_gain_that_depends_on_the_host_is_told(launch_ms: float | None, is_told: bool) -> None:
    """On an H200 a plan that was queued in 43 of 57 ms gained on a fast host, and nothing on a slow one."""
    assert ("on a slower host less is gained" in _summary(launch_ms=launch_ms)) is is_told


def test_a_step_bound_by_launches_is_told_once() -> None:
    text = _summary(launch_ms=84.0, launch_bound=True)
    assert "bound by Python launching kernels" in text
    assert "on a slower host" not in text


@pytest.mark.parametrize(
    ("refused_ms", "said"),
    [(100.0, "What was written is 1.1"), (60.0, "What was written is slower"), (130.0, "")],
)
def test_a_refused_recipe_that_is_faster_than_the_best_stock_recipe_is_told(refused_ms: float, said: str) -> None:
    """Whisper took 49 ms under autocast, which was refused: a plan of 90 ms is slower for its user, 1.9x FP32 or no."""
    data = won(repeated=True, objective="time", not_measured=[], stopped="budget", launch_bound=False, launch_ms=None)
    recipe = {"recipe": "autocast-fp16", "valid": False, "reason": "the gradient of k_proj points elsewhere"}
    step = {"median": refused_ms, "low": refused_ms, "high": refused_ms, "repeats": 10}
    data["stock"] = [
        *(entry for entry in data["stock"] if entry["valid"]),
        {**data["stock"][0], **recipe, "step_ms": step},
    ]
    record = cast("TrialRecord", None)
    verdict = Verdict("plan", record, STEP, record, STEP, 1.39, 1.36)
    text = summary(TuneResult(data, plan(), verdict, {"patched": Path("net_amptuned.py")}))
    assert ("Refused, though faster than the best stock recipe: autocast-fp16" in text) is bool(said)
    assert said in text
