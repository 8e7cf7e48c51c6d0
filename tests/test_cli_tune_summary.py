"""What tune prints at its end: the parts that depend on how the winner was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from amptune.commands.tune import summary
from amptune.tune.finalists.finals import Verdict
from amptune.tune.run import TuneResult
from amptune.tune.running.timing import StepTime
from amptune.tune.study.trial import TrialRecord

from .report.tune_sample import plan, result, trials, won

STEP = StepTime.of([85.0, 85.5, 86.0])


REST: dict[str, Any] = {"repeated": True, "objective": "time", "not_measured": [], "stopped": "budget",
                        "launch_bound": False, "launch_ms": None, "max_memory": None, "compiled": None}  # fmt: skip


def _summary(**fields: Any) -> str:
    return _said_of(won(**REST | fields))


def _said_of(data: dict[str, Any]) -> str:
    record = cast("TrialRecord", None)  # what is printed of trials is in the data
    verdict = Verdict("plan", record, STEP, record, STEP, 1.39, 1.36)
    return summary(TuneResult(data, plan(), verdict, {"patched": Path("net_amptuned.py")}))


@pytest.mark.parametrize(
    ("launch_ms", "is_told"), [(70.0, True), (40.0, False), (None, False)], ids=["most", "half", "not known"]
)
def test_a_gain_that_depends_on_the_host_is_told(launch_ms: float | None, is_told: bool) -> None:
    """On an H200 a plan that was queued in 43 of 57 ms gained on a fast host, and nothing on a slow one."""
    assert ("on a slower host less is gained" in _summary(launch_ms=launch_ms)) is is_told


def test_a_loss_gap_beyond_the_tolerance_is_told_with_what_allows_it() -> None:
    """It is within what FP32 is from itself, or the plan would not be there."""
    data = won(**REST)
    assert "from itself" not in _said_of(data)
    data["best"] = data["best"] | {"loss_gap": 0.0266}
    data["trials"][-1]["loss_gap_allowed"] = 0.0357
    assert "loss gap to FP32 +2.660%, while FP32 is up to 3.570% from itself." in _said_of(data)


def test_a_step_bound_by_launches_is_told_once() -> None:
    text = _summary(launch_ms=84.0, launch_bound=True)
    assert "bound by Python launching kernels" in text
    assert "on a slower host" not in text


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ("exhausted", "No plan differs from the stock recipes"),
        ("timeout", "A larger --budget or --timeout leaves room"),
    ],
)
def test_why_only_recipes_were_measured_is_told(stopped: str, said: str) -> None:
    data = won(**REST | {"stopped": stopped})
    data["trials"] = [trial for trial in data["trials"] if trial["kind"] == "stock"]
    data["best"] = data["stock"][1]
    record = cast("TrialRecord", None)
    verdict = Verdict("stock", record, STEP, record, STEP)
    assert said in summary(TuneResult(data, plan(), verdict, {"patched": Path("net_amptuned.py")}))


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (1.94, "In 2 rounds beside it the best plan (trial 19) was 1.94x as fast, at least 0.62x with 95 % confidence"),
        (0.97, "In 2 rounds beside it the best plan (trial 19) was 0.97x as fast."),
        (None, "beyond the noise. It is what was written."),
    ],
)
def test_by_how_much_a_plan_missed_is_told(gain: float | None, said: str) -> None:
    """Two rounds are too few to tell a plan that takes half as long: that it may be so was not said."""
    missed: dict[str, Any] = {"trial": 19, "step_ms": None, "memory_bytes": None, "speedup": gain, "speedup_low": 0.62}
    missed |= {"rounds": 2, "more_rounds_by": "--budget"}
    data = result(trials(), (1, 118.9), (1, 118.9), "stock", **REST, missed=missed if gain else None)
    record = cast("TrialRecord", None)
    verdict = Verdict("stock", record, STEP, record, STEP)
    text = summary(TuneResult(data, plan(), verdict, {"patched": Path("net_amptuned.py")}))
    assert said in text
    assert ("the best plan (trial" in text) is (gain is not None)
    assert ("a larger --budget leaves time for more rounds" in text) is (gain == 1.94)
    missed["more_rounds_by"] = None
    text = summary(TuneResult(data, plan(), verdict, {"patched": Path("net_amptuned.py")}))
    assert "a larger" not in text
    assert ("95 % confidence: an idle machine makes them steadier" in text) is (gain == 1.94)


MEMORY = 18 * 2**30


@pytest.mark.parametrize(
    ("refused_ms", "most", "said"),
    [
        (100.0, None, "What was written is 1.1"),
        (60.0, None, "The trial of what was written took 8"),
        (130.0, None, ""),
        (60.0, MEMORY, "more --steps tell"),
        (60.0, MEMORY - 1, ""),
    ],
)
def test_a_refused_recipe_that_is_faster_than_the_best_stock_recipe_is_told(
    refused_ms: float, most: int | None, said: str
) -> None:
    """Whisper took 49 ms under autocast, which was refused: a plan of 90 ms is slower for its user, 1.9x FP32 or no.

    What takes more memory than is allowed is refused for that, and no longer run would tell anything.
    """
    data = won(**REST | {"max_memory": most})
    (refused,) = (trial for trial in data["trials"] if trial["recipe"] == "autocast-fp16")
    refused["step_ms"]["median"] = refused_ms
    text = _said_of(data)
    assert ("faster than that of the best stock recipe (autocast-bf16): autocast-fp16, " in text) is bool(said)
    assert said in text


def test_a_refused_recipe_is_compared_as_it_was_measured() -> None:
    """Under torch.compile the repeats compile whole models, and trials the blocks: their steps do not compare."""
    data = won(**REST)
    data["repeats"]["stock"]["step_ms"] = STEP.to_json()
    text = _said_of(data)
    assert "autocast-fp16, 117.00 ms a step against" in text
    assert "(the scaler skipped 14 of 60 steps). What was written is 1.37x" in text


@pytest.mark.parametrize(
    ("compiled", "gain", "said"),
    [
        ("parts", 1.43, "not the model as a whole: compiled so, autocast-bf16 is 1.43x as fast as compiled whole."),
        ("parts", 0.96, "compiled so, autocast-bf16 is 0.96x as fast as compiled whole."),
        ("parts", None, "The plan's blocks are compiled each by itself, not the model as a whole."),
        ("whole", None, ""),
    ],
)
def test_what_compiling_by_blocks_gives_by_itself_is_told(compiled: str, gain: float | None, said: str) -> None:
    text = _summary(compiled=compiled, attribution={"full": 1.57, "stock_in_parts": gain})
    assert said in text
    assert ("blocks" in text) is bool(said)


def test_a_recipe_that_is_faster_by_blocks_is_named() -> None:
    data = won(**REST | {"compiled": "parts", "attribution": {"full": 1.4, "stock_in_parts": 1.4}})
    data["best"]["recipe"] = "autocast-bf16"
    assert "It is autocast-bf16 with its blocks compiled each by itself" in _said_of(data)


@pytest.mark.parametrize(
    ("compiled", "stock_in_eager", "said", "without"),
    [
        ("eager", False, "In the repeats autocast-bf16 ran compiled, and the plan in eager mode.", True),
        ("whole", True, "In the repeats autocast-bf16 ran in eager mode, and the plan compiled.", False),
    ],
)
def test_how_finalists_ran_whose_trials_compiled_nothing_is_told(
    compiled: str, stock_in_eager: bool, said: str, without: bool
) -> None:
    data = won(**REST | {"compiled": compiled, "trials_in_eager": True})
    data["repeats"]["stock_in_eager"] = stock_in_eager
    text = _said_of(data)
    assert said in text
    assert "Trials ran in eager mode" in text
    assert ("without torch.compile" in text) is without
    data["repeated"] = False
    text = _said_of(data)
    assert "Compiled, nothing was measured." in text
    assert "without torch.compile" not in text


def _rows(text: str) -> list[list[str]]:
    return [line.split("  ")[0].split(": ") for line in text.partition("\n\n")[0].splitlines()]


def test_both_that_the_sentence_compares_are_in_the_table() -> None:
    text = _summary()
    assert ["repeated", "autocast-bf16"] in _rows(text)
    assert ["best, repeated", "plan"] in _rows(text)
    assert "118.90" in text.partition("\n\n")[0]
    assert "may seem faster" not in text


def test_what_decides_is_told_where_a_trial_was_faster_than_what_is_written() -> None:
    """On a host that slows down, a plan's repeats take longer than the trial of a recipe that is slower than it."""
    data = won(**REST)
    data["stock"][0]["step_ms"]["median"] = 85.0
    line = _said_of(data).splitlines()[len(_rows(_said_of(data))) - 1]
    assert line == (
        "By its trial fp32 (85.00 ms) may seem faster, but trials meet fast and slow moments of the machine: what is "
        "marked as repeated was measured in turns, which decides."
    )
    data["objective"] = "memory"
    data["best"]["memory_bytes"] = MEMORY
    assert "may seem faster" not in _said_of(data)


@pytest.mark.parametrize(
    ("usual_ms", "said"),
    [
        (130.0, "by these it is autocast-bf16 118.30 ms, fp32 130.00 ms."),
        (110.0, "of the machine: what was measured in turns decides."),
    ],
)
def test_what_decides_between_recipes_without_repeats_is_told(usual_ms: float, said: str) -> None:
    """The recipe that is written is the best by what its trial shows beside others, not by the clock."""
    data = won(**REST | {"repeated": False})
    data["best"] = data["repeats"]["stock"] = data["stock"][1]
    data["stock"][0]["step_ms"]["median"] = 110.0
    data["trials"][0] |= {"paired_ms": 1.0, "usual_ms": usual_ms}
    text = _said_of(data)
    assert "By its trial fp32 (110.00 ms) may seem faster" in text
    assert said in text
    assert ["best", "autocast-bf16"] in _rows(text)
