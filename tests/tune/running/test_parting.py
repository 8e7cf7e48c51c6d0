from __future__ import annotations

import math

import pytest

from amptune.tune.quality.reference import measure_reference
from amptune.tune.running.parting import Parting
from amptune.tune.running.training import Run
from tests.tune.conftest import MLP, Make


def parted(gaps: list[float], steps: int = 16, scale: float = 2.0) -> Parting:
    found = Parting([3.0] * steps, scale, enough=1e-4)
    for gap in gaps:
        found.add(3.0 + gap)
    return found


def test_nothing_is_foreseen_before_half_of_the_steps() -> None:
    assert parted([1e-6] * 7).foreseen == math.inf
    assert parted([1e-6] * 8).foreseen == pytest.approx(0.5e-6)
    assert parted([1e-6] * 8).is_clear


def test_runs_that_part_are_foreseen_to_go_on_so() -> None:
    """Ten times as far in the second quarter: a hundred times as far again in the end."""
    found = parted([1e-6] * 4 + [1e-5] * 4)
    assert found.foreseen == pytest.approx(0.5e-3)
    assert not found.is_clear


def test_equal_runs_stay_equal_and_a_break_is_not_clear() -> None:
    assert parted([0.0] * 8).foreseen == 0.0
    assert parted([0.0] * 7 + [1e-9]).foreseen == math.inf
    assert parted([1e-9] * 7 + [math.nan]).foreseen == math.inf
    assert parted([1e-9] * 7 + [math.inf]).foreseen == math.inf


def test_few_steps_and_a_loss_of_nothing_are_run_to_the_end() -> None:
    assert parted([1e-9] * 3, steps=7).foreseen == math.inf
    assert parted([1e-9] * 8, scale=0.0).foreseen == math.inf


CHAOTIC = MLP.replace("weights = F.softmax(self.fc1(x), -1)", "weights = torch.sin(300 * self.fc1(x))")


@pytest.mark.parametrize(("source", "steps"), [(MLP, 16 + 8), (CHAOTIC, 2 * 3 * 16)])
def test_the_noise_of_calm_training_takes_half_of_the_steps(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch, source: str, steps: int
) -> None:
    bench, batches = make_bench(source, steps=16)
    honest, count = Run.counted_step, iter(range(10_000))

    def counted_step(self: Run, batch: object) -> object:
        next(count)
        return honest(self, batch)

    monkeypatch.setattr(Run, "counted_step", counted_step)
    reference = measure_reference(bench, batches, tolerance=0.05, seed=0)
    assert next(count) == steps
    assert (reference.noise < 0.1 * 0.05) is (source == MLP)
