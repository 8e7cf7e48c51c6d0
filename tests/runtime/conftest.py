import pytest
import torch

from amptune import runtime


@pytest.fixture(autouse=True)
def _one_thread_and_seed(one_thread: None) -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _quiet_about_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning about an outer autocast comes once per process; each test starts as a fresh process would."""
    monkeypatch.setattr(runtime, "_warned_of_autocast", False)
