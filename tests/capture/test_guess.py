"""Batches that are guessed from the first layer that runs."""

from __future__ import annotations

import pytest

from amptune.capture import capture
from amptune.errors import TargetError
from tests.capture.conftest import Load

CLASS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {init}

    def forward(self, x):
        {forward}
"""


@pytest.mark.parametrize(
    ("init", "forward", "expected"),
    [
        ("self.fc = nn.Linear(784, 10)", "return self.fc(x.view(x.size(0), -1))", "8x784:float32"),
        (
            "self.head, self.conv = nn.Linear(6 * 14 * 14, 10), nn.Conv2d(1, 6, 5)",
            "return self.head(F.max_pool2d(self.conv(x), 2).flatten(1))",
            "8x1x32x32:float32",
        ),
        (
            "self.conv, self.position = nn.Conv2d(3, 8, 16, 16), nn.Parameter(torch.zeros(1, 196, 8))",
            "return self.conv(x).flatten(2).transpose(1, 2) + self.position",
            "8x3x224x224:float32",
        ),
        (
            "self.position, self.embed = nn.Embedding(32, 8), nn.Embedding(100, 8)",
            "return self.embed(x) + self.position(torch.arange(x.shape[1]))",
            "8x32:int64:100",
        ),
        ("self.up = nn.ConvTranspose2d(100, 8, 4)", "return self.up(x)", "8x100x1x1:float32"),
        ("self.gru = nn.GRU(12, 8, batch_first=True)", "return self.gru(x, torch.zeros(1, x.size(0), 8))[0]",
         "8x64x12:float32"),
        ("self.norm = nn.BatchNorm1d(12)", "return self.norm(x)", "8x12:float32"),
        ("self.conv = nn.Conv1d(4, 8, 3)", "b, c, l = x.shape\n        return self.conv(x)", "8x4x1024:float32"),
        ("self.fc = nn.Linear(12, 8)", "b, s, d = x.shape\n        return self.fc(x).view(b, s, 2, 4)",
         "8x64x12:float32"),
        ("self.fc = nn.Linear(12, 8)", "return self.fc(x) if x.sum() > 0 else x", "8x12:float32"),
    ],
    ids=["mlp", "cnn", "vit", "positions", "generator", "gru", "batch norm", "conv1d", "sequence", "branch"],
)  # fmt: skip
def test_the_first_layer_tells_the_input(init: str, forward: str, expected: str, load: Load) -> None:
    target = load(CLASS.format(init=init, forward=forward))
    assert [str(spec) for spec in target.inputs] == [expected]
    assert any(f"--input {expected}" in note for note in target.notes)
    capture(target)


def test_a_transformers_model_tells_its_inputs(load: Load) -> None:
    text = """
    from transformers import GPT2Config, GPT2LMHeadModel

    def make_model():
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=99, n_positions=64))
    """
    target = load(text)
    assert [str(spec) for spec in target.inputs] == ["input_ids=8x64:int64:99", "labels=8x64:int64:99"]
    assert capture(target).has_loss


def test_what_cannot_be_guessed_is_asked_for(load: Load) -> None:
    with pytest.raises(TargetError) as caught:
        load("class Net(nn.Module):\n    def forward(self, x, mask): return x + mask\n")
    message = str(caught.value)
    assert "Net.forward(x, mask)" in message
    assert "--input x=" in message
    assert "def make_batch():" in message
