"""Extremes of real tensors, small and large."""

from __future__ import annotations

import torch

from amptune.analyze.sitefacts.constants import range_of
from amptune.core.bounds.intervals import Range

MANY = (1 << 22) + 1


def test_infinities_of_a_small_tensor_are_left_out() -> None:
    assert range_of(torch.tensor([-2.0, float("inf"), 3.0])) == Range(-2.0, 3.0)


def test_a_large_tensor_is_read_too() -> None:
    """A batch of images has more numbers than are copied for it."""
    images = torch.zeros(MANY, dtype=torch.float16)
    images[7], images[-1] = -2.0, 1.0
    assert range_of(images) == Range(-2.0, 1.0)


def test_large_tensors_that_say_nothing() -> None:
    infinite = torch.zeros(MANY, dtype=torch.float16)
    infinite[0] = float("inf")
    assert range_of(infinite) is None
    assert range_of(torch.zeros(MANY, dtype=torch.bool)) is None
