"""What autograd keeps of each op and of a small model, beside torch's own saved tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from amptune.analyze.sitefacts.enrich import enrich
from amptune.analyze.stepcost.kernels import Setting
from amptune.analyze.stepcost.memory import step_memory
from amptune.analyze.stepcost.moves import cost_of
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.autocast import realise
from amptune.core.recipes import RECIPES

ROWS = torch.tensor([0, 1])
OPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "elu": F.elu, "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish, "tanh": torch.tanh, "tan": torch.tan, "exp": torch.exp, "sqrt": torch.sqrt,
    "log": torch.log, "softmax": lambda x: x.softmax(-1), "logsumexp": lambda x: x.logsumexp(-1),
    "sum": lambda x: x.sum(-1), "mean": lambda x: x.mean(-1), "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1), "prod": lambda x: x.prod(-1), "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2), "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2), "pad": lambda x: F.pad(x, (1, 1)), "triu": torch.triu,
    "gather": lambda x: x.gather(0, torch.zeros(1, 8, 8, 8, dtype=torch.long)),
    "masked_select": lambda x: x.masked_select(x.detach() > 0.5), "fft": torch.fft.rfft,
    "lerp": lambda x: torch.lerp(torch.ones_like(x), x, 0.5), "diff": torch.diff,
    "hypot": lambda x: torch.hypot(x, torch.ones_like(x)), "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "scatter_add": lambda x: torch.zeros(2, 8, 8, 8).scatter_add(0, torch.zeros(2, 8, 8, 8, dtype=torch.long), x),
    "index_add": lambda x: torch.zeros(4, 8, 8, 8).index_add(0, ROWS, x),
    "index_copy": lambda x: torch.zeros(4, 8, 8, 8).index_copy(0, ROWS, x),
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_the_table_says_what_torch_keeps(op: str) -> None:
    x = torch.rand(2, 8, 8, 8).mul(0.8).add(0.1).requires_grad_() * 1.0
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (saved.append(tensor.untyped_storage().data_ptr()), tensor)[1], lambda tensor: tensor
    ):
        made = OPS[op](x)
    cost = cost_of(op)
    assert cost is not None
    reads, writes = (each.untyped_storage().data_ptr() in saved for each in (x, made))
    assert (cost.saves in ("inputs", "both", "source"), cost.saves in ("output", "both")) == (reads, writes)


MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.register_buffer("mask", (torch.arange(64 * 64) % 3 > 0).float().view(64, 64))

    def forward(self, x):
        h = self.frozen(self.down(torch.sin(self.up(x))))
        h = F.pad(h[:, None] + 1, (2, 2), mode="{mode}")[..., 2:-2].squeeze(1) + 1
        h = (h + 2) * self.mask
        picked = (h + 3).gather(1, torch.zeros(64, 64, dtype=torch.long))
        total = torch.zeros(8, 64).index_add(0, torch.arange(64) % 8, picked.sin() + 4)
        return (total + 1).pow(2).sum()


def make_model():
    return Model()


def make_batch():
    return torch.randn(64, 64)


def loss_fn(output, batch):
    return output
"""


def kept_by_torch(file: Path) -> int:
    """Bytes of the tensors that autograd keeps of a step, but for parameters, buffers and the batch."""
    target = load_target(TargetSpec(str(file)))
    model, batch = target.make_model(), target.make_batch()
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers(), batch)}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch)
    assert loss.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_a_model_keeps_what_torch_keeps(mode: str, tmp_path: Path) -> None:
    """Frozen layers and masks do not keep what they multiply; gathers, scatters and reflections keep what they read."""
    file = tmp_path / "model.py"
    file.write_text(MODEL.format(mode=mode))
    captured = capture(load_target(TargetSpec(str(file))))
    enrich(captured.graph, captured.graph_module)
    setting = Setting(RECIPES["fp32"], holds_output=False)
    memory = step_memory(captured.graph, realise(captured.graph, setting.recipe), setting)
    assert memory.activations == pytest.approx(kept_by_torch(file), rel=0.02)
