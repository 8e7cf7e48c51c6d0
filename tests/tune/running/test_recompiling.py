"""Compile mode on models that are not compiled once and for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from amptune.errors import TuneError
from amptune.tune.running import timing
from amptune.tune.running.compilation import Compilation, forget_compiled
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.recompiling import num_compiled
from amptune.tune.running.timing import StepTime, joined, measure_interleaved, measure_step, pooled
from amptune.tune.study.outcomes import describe
from amptune.tune.study.trial import Outcome
from tests.tune.conftest import MLP, Make

BRANCHES = (
    MLP.replace(
        "        x = self.norm(self.embed(ids))",
        """        x = self.norm(self.embed(ids))
        if ids.max() > 4:
            x = x.sin()""",
    )
    .replace("ids = torch.randint(30, (16, 8), generator=generator)", "ids = ids + 1")
    .replace("    while True:", "    ids = torch.zeros(16, 8, dtype=torch.long)\n    while True:")
)
"""The fifth batch takes a branch that no batch of the warm-up took."""
COUNTS = MLP.replace("        x = self.norm", "        self.calls += 1\n        x = self.calls * self.norm").replace(
    "        self.fc1 =", "        self.calls = 0\n        self.fc1 ="
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    forget_compiled()
    yield
    forget_compiled()


@pytest.fixture
def compiled_within(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much was compiled in each block of timed steps."""
    found: list[int] = []
    honest = timing.timed_steps

    def timed(*arguments: object) -> StepTime:
        before = num_compiled()
        step = honest(*arguments)  # type: ignore[arg-type]
        found.append(num_compiled() - before)
        return step

    monkeypatch.setattr(timing, "timed_steps", timed)
    return found


def test_steps_are_timed_again_after_a_branch_was_compiled(make_bench: Make, compiled_within: list[int]) -> None:
    bench, batches = make_bench(BRANCHES)
    bench.compilation = Compilation("eager")
    step, _, _ = measure_step(bench, Candidate("fp32"), batches)
    assert step is not None
    assert not step.recompiled
    assert compiled_within[0] > 0, "the branch must be met in timed steps for the test to say something"
    assert set(compiled_within[1:]) == {0}
    assert len(step.repeats) <= timing.MAX_STEPS, "the first attempt does not count"


def test_rounds_are_timed_again_too(make_bench: Make, compiled_within: list[int]) -> None:
    bench, batches = make_bench(BRANCHES)
    bench.compilation = Compilation("eager")
    ((first, second),) = measure_interleaved(bench, [Candidate("fp32")], batches, rounds=2)
    assert sum(map(bool, compiled_within)) == 1, "in the first attempt; before, the steps compiled that warm it up"
    assert not first.recompiled
    assert not second.recompiled


def test_steps_that_go_on_compiling_are_marked(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, batches = make_bench()
    monkeypatch.setattr(timing, "_warm_steps", lambda *_: [1.0, 1.0, 1.0])
    monkeypatch.setattr(timing, "num_compiled", iter(range(100)).__next__)
    step, _, _ = measure_step(bench, Candidate("fp32"), batches)
    assert step is not None
    assert step.recompiled
    calm = StepTime.of([1.0])
    assert pooled([calm, step]).recompiled
    assert joined([calm, step]).recompiled
    outcome = Outcome("stock", "valid", step_ms=step.to_json(), recompiled=True)
    assert "compiling still within them" in describe(0, outcome)
    assert "compiling" not in describe(0, dataclasses.replace(outcome, recompiled=False))


def test_a_model_that_is_compiled_anew_in_every_step_is_said_so_with_the_line(make_bench: Make) -> None:
    bench, batches = make_bench(COUNTS)
    bench.compilation = Compilation("eager")
    with pytest.raises(
        TuneError, match=r"anew in each of its first 10 steps: self\.calls == \d+ holds no longer"
    ) as info:
        measure_step(bench, Candidate("fp32"), batches)
    line = 1 + COUNTS.splitlines().index("        self.calls += 1")
    assert f"model.py:{line})" in str(info.value)
    assert "in a tensor" in str(info.value)
