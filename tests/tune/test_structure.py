"""A make_model() whose structure is drawn or changes by itself, or whose weights have 16 bits already."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..inprocess import amptune
from .conftest import MLP

LAYERS = MLP.replace(
    "def make_model():\n    return Net()",
    """class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.net = Net()
        self.more = nn.ModuleList(nn.Linear(13, 13) for _ in range(depth))

    def forward(self, ids):
        x = self.net(ids)
        for layer in self.more:
            x = layer(x)
        return x


def make_model():
    import os, random, time
    return Deep({depth})""",
)


@pytest.mark.parametrize("command", [("tune", "--budget", "2"), ("bench", "--rounds", "1")], ids=["tune", "bench"])
def test_a_structure_that_changes_each_time_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "count").write_text("")
    depth = "open('count', 'a').write('.') and os.path.getsize('count')"
    (tmp_path / "net.py").write_text(LAYERS.replace("{depth}", depth))
    result = amptune(tmp_path, command[0], "net.py", *command[1:], "--steps", "2", "--device", "cpu")
    assert (result.returncode, result.stdout) == (3, "")
    assert "make_model() builds another model each time: only some have more." in result.stderr


def test_a_structure_that_is_drawn_is_the_same_in_both_processes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LAYERS.replace("{depth}", "random.randint(1, 10**6) % 7"))
    result = amptune(tmp_path, "tune", "net.py", "--budget", "2", "--steps", "2", "--device", "cpu")
    assert result.returncode == 0, result.stderr


def test_a_model_with_16_bit_weights_of_its_own_is_given_back_as_it_is(tmp_path: Path) -> None:
    own = MLP.replace("return Net()", "return Net().bfloat16()").replace("fused=True", "fused=False")
    (tmp_path / "net.py").write_text(own)
    result = amptune(tmp_path, "tune", "net.py", "--budget", "1", "--steps", "2", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "amptune-out/net/net_amptuned.py").exists()
