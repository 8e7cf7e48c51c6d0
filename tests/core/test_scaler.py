"""The scaler that is chosen fits the record, and the simulation does what torch's GradScaler does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amptune.core.plan import ScalerConfig
from amptune.core.scaler import (
    DEFAULT,
    FP16_LOSS_SCALE,
    GradientRecord,
    GradientStep,
    choose_scaler,
    scaler_json,
    simulate,
    static_scale,
)


def record_of(*amax_log2: float, low: int = -10) -> GradientRecord:
    """Steps with the given largest exponent and 99 elements at 2**low for each one at the top."""
    return GradientRecord(tuple(GradientStep(a, {math.floor(a): 1, low: 99}) for a in amax_log2))


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20))
def test_init_scale_is_the_largest_power_of_two_within_the_margin(amax_log2):
    config = choose_scaler(record_of(*amax_log2))
    largest = 2.0 ** max(amax_log2)
    assert math.log2(config.init_scale).is_integer()
    assert largest * config.init_scale <= 65504 / 8 * (1 + 1e-12)
    assert largest * config.init_scale * 2 > 65504 / 8
    assert simulate(config, record_of(*amax_log2)).skipped_steps == 0


def test_a_loss_in_fp16_bounds_the_scale():
    record = GradientRecord((GradientStep(-30.0, {-30: 1}),))
    assert choose_scaler(record).init_scale > FP16_LOSS_SCALE
    assert choose_scaler(record, largest=FP16_LOSS_SCALE).init_scale == FP16_LOSS_SCALE
    assert torch.tensor(FP16_LOSS_SCALE).half().isfinite()
    assert torch.tensor(2 * FP16_LOSS_SCALE).half().isinf()


def test_no_fp16_site_needs_no_scaler():
    assert choose_scaler(record_of(3.0), uses_fp16=False) == ScalerConfig(enabled=False)


@pytest.mark.parametrize("record", [GradientRecord(), GradientRecord((GradientStep(-math.inf),))])
def test_without_gradients_torch_settings_stay(record):
    assert choose_scaler(record) == DEFAULT


def test_a_step_that_is_not_finite_does_not_decide_the_scale():
    assert static_scale(record_of(0.0, 1.0)) == static_scale(
        GradientRecord((*record_of(0.0, 1.0).steps, GradientStep(math.inf)))
    )


def test_extreme_gradients_keep_the_scale_inside_fp32():
    assert static_scale(record_of(-140.0)) == 2.0**48
    assert static_scale(record_of(100.0)) == 2.0**-24


def test_growth_interval_stays_until_two_intervals_were_recorded():
    quiet = [0.0] * 499
    assert choose_scaler(record_of(*quiet)).growth_interval == 2000


def test_a_long_record_can_choose_another_growth_interval():
    # Every growth beyond the initial scale overflows; growing rarely skips least.
    config = choose_scaler(record_of(*[12.9] * 9000))
    assert config.growth_interval == 4000
    assert simulate(config, record_of(*[12.9] * 9000)).skipped_steps == 0


def test_margin_lets_the_scale_grow_three_times_before_it_overflows():
    config = ScalerConfig(enabled=True, init_scale=static_scale(record_of(0.0)), growth_interval=10)
    result = simulate(config, record_of(*[0.0] * 31))
    assert (result.skipped_steps, result.final_scale) == (0, config.init_scale * 8)
    assert simulate(config, record_of(*[0.0] * 41)).skipped_steps == 1


def test_default_scale_skips_steps_until_it_fits():
    result = simulate(DEFAULT, record_of(*[4.0] * 20))
    assert (result.skipped_steps, result.final_scale, result.steps_to_settle) == (5, 2048.0, 4)


def test_underflow_counts_what_rounds_to_zero():
    fp16_flushes_below = -25
    at_the_edge = GradientRecord((GradientStep(0.0, {0: 1, fp16_flushes_below: 1, fp16_flushes_below - 1: 2}),))
    unscaled = ScalerConfig(enabled=False)
    assert simulate(unscaled, at_the_edge).underflowed_share == 0.5
    assert simulate(ScalerConfig(enabled=True, init_scale=2.0), at_the_edge).underflowed_share == 0.0


def test_a_disabled_scaler_never_moves():
    assert simulate(ScalerConfig(enabled=False), record_of(20.0, 0.0)).final_scale == 1.0


def test_json_has_the_schema_that_others_read():
    data = scaler_json(choose_scaler(record_of(0.0)), GradientRecord((*record_of(0.0).steps, GradientStep(-math.inf))))
    assert list(data) == ["version", "gradscaler", "static_scale", "simulation", "recorded"]
    assert data["recorded"] == {"steps": 2, "amax_log2": [0.0, None]}
    assert set(data["simulation"]) == {"tuned", "default"}
    assert set(data["gradscaler"]) == {"enabled", "init_scale", "growth_factor", "backoff_factor", "growth_interval"}


@settings(deadline=None)  # the first call imports torch
@given(
    st.lists(st.floats(-8, 18), min_size=1, max_size=60),
    st.sampled_from([2.0**4, 2.0**16]),
    st.integers(1, 5),
)
def test_simulation_agrees_with_torch(amax_log2, init_scale, growth_interval):
    torch = pytest.importorskip("torch")
    config = ScalerConfig(enabled=True, init_scale=init_scale, growth_interval=growth_interval)
    scaler = torch.amp.GradScaler("cpu", **config.to_json())
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    skipped = 0
    for amax in amax_log2:
        scale = float(scaler.scale(torch.ones(())))
        grad = torch.tensor([2.0**amax], dtype=torch.float64).mul(scale).half()
        parameter.grad = grad.float()
        skipped += int(not torch.isfinite(grad).all())
        scaler.step(optimizer)
        scaler.update()
    result = simulate(config, record_of(*amax_log2))
    assert (result.skipped_steps, result.final_scale) == (skipped, scaler.get_scale())
