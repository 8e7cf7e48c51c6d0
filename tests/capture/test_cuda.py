"""Captures of models that live on a GPU."""

from __future__ import annotations

import pytest
import torch

from amptune.capture import capture
from tests.capture.conftest import Load

pytestmark = pytest.mark.gpu

MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def make_model(): return Net().to("cuda").to(memory_format=torch.channels_last)
def make_batch(): return torch.randn(4, 3, 16, 16, device="cuda"), torch.randint(5, (4,), device="cuda")
def loss_fn(output, batch): return F.cross_entropy(output.float(), batch[1])
"""


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
def test_a_model_on_the_gpu(frontend: str, load: Load) -> None:
    found = capture(load(MODEL), frontends=[frontend])
    assert [site.id for site in found.graph] == [
        "conv", "norm", "#relu.0", "#mean.0", "fc", "loss_fn#cross_entropy.0",
    ]  # fmt: skip
    assert found.graph["conv"].outputs[0].dtype == "bfloat16"
    assert found.graph["conv"].attrs["autocast"] == "bfloat16"


def test_capturing_takes_no_gpu_memory_for_weights(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(40_000, 40_000)

        def forward(self, x):
            return self.fc(x)

    def make_model(): return Net().cuda()
    def make_batch(): return torch.randn(2, 40_000, device="cuda")
    """
    torch.cuda.reset_peak_memory_stats()
    assert len(capture(load(text), frontends=["record-fake"]).graph) == 1
    assert torch.cuda.max_memory_allocated() < 100_000_000
