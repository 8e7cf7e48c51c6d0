from collections.abc import Iterator

import pytest
import torch

from amptune import runtime


@pytest.fixture(autouse=True)
def _one_thread_and_seed(one_thread: None) -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _pins_as_before() -> Iterator[None]:
    before = dict(runtime.PINS)
    yield
    runtime.PINS.clear()
    runtime.PINS.update(before)
