"""The stop rule: a drift is told from noise, and noise is not taken for a drift."""

from __future__ import annotations

import random

import pytest

from amptune.verify.judge import ROUNDINGS, measure_gap

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


def nearly_gone(factor: float = 1.0, shift: float = 0.0) -> list[float]:
    """From 94 to 1e-4 in the first half; then ``factor`` times that, plus ``shift``."""
    return [94.0 * 1e-6 ** min(1.0, 2 * step / STEPS) * (factor if step >= STEPS / 2 else 1.0) + shift
            for step in range(STEPS)]  # fmt: skip


def test_progress_from_a_high_loss_excuses_no_loss_that_is_many_times_what_is_left() -> None:
    exact = nearly_gone()
    assert measure_gap(exact, nearly_gone(1000.0), exact, 0.005).is_worse
    assert measure_gap(exact, nearly_gone(3.0), exact, 0.005).is_worse
    assert measure_gap(exact, nearly_gone(1.5), exact, 0.005).is_settled


def test_noise_of_fp32_near_zero_is_allowed() -> None:
    exact = nearly_gone()
    assert measure_gap(exact, nearly_gone(40.0), nearly_gone(50.0), 0.005).is_settled


def test_what_rounding_makes_of_a_loss_near_zero_is_allowed() -> None:
    exact, rounded = nearly_gone(), nearly_gone(101.0)
    allowed = measure_gap(exact, exact, exact, 0.005, rounded).noise
    assert allowed == pytest.approx(ROUNDINGS * 100 * 94e-6)
    assert measure_gap(exact, nearly_gone(200.0), exact, 0.005, rounded).is_settled
    assert measure_gap(exact, nearly_gone(1000.0), exact, 0.005, rounded).is_worse
    assert measure_gap(exact, exact, exact, 0.005, nearly_gone(1e6)).noise == pytest.approx(0.005 * 94, rel=1e-3)


def test_a_loss_that_passes_through_zero_is_not_nearly_gone() -> None:
    exact = nearly_gone(shift=-1.0)
    assert measure_gap(exact, [loss + 0.4 for loss in exact], exact, 0.005).is_settled
