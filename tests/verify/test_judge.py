"""The stop rule: a drift is told from noise, and noise is not taken for a drift."""

from __future__ import annotations

import random

import pytest

from amptune.verify.judge import measure_gap

STEPS = 100


def losses(seed: int, drift: float = 0.0, noise: float = 0.01) -> list[float]:
    """A falling loss; the noise of the batches is shared by all runs, that of the run is its own."""
    batches, own = random.Random(0), random.Random(seed)
    return [
        2.0 * 0.98**step + 0.5 + batches.gauss(0, 0.1) + own.gauss(0, noise) + drift * step / STEPS
        for step in range(STEPS)
    ]


@pytest.mark.parametrize("seed", range(2, 7))
def test_a_drift_beyond_the_noise_is_worse(seed: int) -> None:
    gap = measure_gap(losses(0), losses(seed, drift=0.1), losses(1), 0.005)
    assert gap.is_worse
    assert not gap.is_settled


@pytest.mark.parametrize("seed", range(2, 7))
def test_noise_alone_is_not(seed: int) -> None:
    gap = measure_gap(losses(0), losses(seed), losses(1), 0.005)
    assert not gap.is_worse


def test_the_tolerance_is_allowed_in_any_case() -> None:
    exact = losses(0, noise=0)
    slightly = [loss + 0.002 for loss in exact]
    gap = measure_gap(exact, slightly, exact, 0.005)
    assert gap.is_settled
    assert gap.mean == pytest.approx(0.002)
    assert measure_gap(exact, slightly, exact, 0.0005).is_worse


def test_a_better_run_is_not_worse() -> None:
    assert not measure_gap(losses(0), losses(2, drift=-0.5), losses(1), 0.005).is_worse
