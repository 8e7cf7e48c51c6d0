"""How long one site is timed for."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn

from amptune.core.choice import FP32
from amptune.tune.prices.sitetimes import FEWEST_REPEATS, REPEATS, WARMUPS, Call, FloatTensor, Variant, time_site
from amptune.tune.running.device import Device


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.calls: list[int] = []
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        self.calls.append(1)
        return x * self.weight


class Counted(Device):
    """A CPU that notes the head starts that it was to give."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.cycles: list[int] = []

    def head_start(self, cycles: int) -> None:
        self.cycles.append(cycles)


class Strides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(x.stride())
        return x * 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_of_one_by_one_have_the_strides_of_their_format(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Strides()
    monkeypatch.setattr(Strides, "__deepcopy__", lambda self, _memo: self, raising=False)
    call = Call((FloatTensor((4, 8, 1, 1), True),), {})
    time_site(module, call, Variant(FP32, channels_last=channels_last), Counted())
    assert module.seen == {(8, 1, 8, 8) if channels_last else (8, 1, 1, 1)}


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, REPEATS), (0.05, FEWEST_REPEATS)])
def test_long_sites_are_repeated_less(seconds: float, repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Sleeper(seconds)
    monkeypatch.setattr(Sleeper, "__deepcopy__", lambda self, _memo: self, raising=False)
    cost = time_site(module, Call((FloatTensor((4, 3), True),), {}), Variant(FP32), Counted())
    assert cost.forward >= 1e3 * seconds
    assert len(module.calls) == 1 + 2 * (WARMUPS + repeats), "a forward for each gradient, and one to know the output"


def test_a_hopeless_site_is_run_once_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution in FP16 takes 92 times as long as in FP32: it was warmed up three times to know it."""
    module = Sleeper(0.2)
    monkeypatch.setattr(Sleeper, "__deepcopy__", lambda self, _memo: self, raising=False)
    cost = time_site(module, Call((FloatTensor((4, 3), True),), {}), Variant(FP32), Counted(), limit=5.0)
    assert math.isinf(cost.ms)
    assert len(module.calls) == 1 + 2, "a forward for each gradient, and one to know the output"


def test_a_head_start_is_as_long_as_queueing_may_take() -> None:
    device = Counted()
    for seconds in (0.0, 0.0005, 0.05):
        time_site(Sleeper(seconds), Call((FloatTensor((4, 3), True),), {}), Variant(FP32), device)
    quick, longer, longest = device.cycles
    assert quick < longer < longest
    assert longer >= 2_000_000 * REPEATS, "two forwards of half a millisecond each"
    assert longest == 60_000_000
