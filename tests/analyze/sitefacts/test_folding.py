"""What a forward works out from constants is known number by number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amptune.analyze.sitefacts.closedrows import stored
from amptune.analyze.sitefacts.dtypes import root
from amptune.analyze.sitefacts.enrich import enrich
from amptune.analyze.sitefacts.folding import Folded
from amptune.analyze.sitefacts.rewritten import Rewritten
from amptune.capture import TargetSpec, capture, load_target

MODEL = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("knots", torch.tensor([0.0, 0.0, 1.0, 3.0, 3.0, 3.0, 4.0, 5.0, 7.0]))
        self.register_buffer("counter", torch.zeros(8))

    def forward(self, x):
        self.counter.add_(1)
        steps = self.knots[1:] - self.knots[:-1]
        moved = self.counter * 2.0
        drawn = torch.rand(8, device=x.device) + 1.0
        table = torch.linspace(1.0, 2.0, 8, device=x.device).log()
        return self.fc(x) * steps + moved * drawn + table


def make_model():
    return Model()


def make_batch():
    return torch.randn(4, 8)


def loss_fn(output, batch):
    return output.mean()
"""


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
def test_only_constants_are_worked_out(frontend: str, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    captured = capture(load_target(TargetSpec(str(path))), frontends=(frontend,))
    enrich(captured.graph, captured.graph_module)
    exact = {site.id: site.attrs["exact"] for site in captured.graph if "exact" in site.attrs}
    assert exact["#sub.0"] == (0.0, 2.0, 3)
    assert exact["#log.0"][:2] == pytest.approx((0.0, 0.6931), abs=1e-4)
    assert set(exact) <= {"#sub.0", "#log.0"}  # neither what is written, nor random, nor made of the input


WRITES = {
    "by rows": "table[1:3] = 0.0\ntable.mul_(2.0)\ntable[:, 0] += 1.0",
    "through a view": "row = table[2]\nrow.fill_(5.0)\nrow += 1.0",
    "by a mask": "table.masked_fill_(torch.arange(8) > 5, 0.5)\ntable = table.clamp_(max=0.75)",
    "read in between": "early = table.sum()\ntable[0] = 9.0\ntable = table * early",
    "a copy in between": "early = table.double()\ntable[0] = 9.0\ntable = table * early.float()",
    "of the input": "table[0] = x[0]",
    "by an op that is not made again": "table[0].uniform_()",
}


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
@pytest.mark.parametrize("writes", WRITES)
def test_what_is_written_into_a_tensor_is_worked_out_with_it(writes: str, frontend: str, tmp_path: Path) -> None:
    lines = ["table = torch.ones(8, 8, device=x.device)", *WRITES[writes].split("\n"), "return self.fc(x[:4]) @ table"]
    path = tmp_path / "model.py"
    body = "\n        ".join(lines)
    path.write_text(f"{MODEL[: MODEL.index('        self.counter.add_')]}        {body}\n\n\n"
                    f"{MODEL[MODEL.index('def make_model') :]}")  # fmt: skip
    captured = capture(load_target(TargetSpec(str(path))), frontends=(frontend,))
    module = captured.graph_module
    written = {root(each) for node in module.graph.nodes for each in node.meta.get("amptune_writes", ())}
    folded = Folded(lambda node: stored(module, node, {}), lambda node: node not in written, Rewritten(module.graph))
    product = next(node for node in module.graph.nodes if node.meta.get("amptune_op") == "matmul")
    found = folded.of(product.args[1])
    x = torch.ones(4, 8)
    scope: dict[str, torch.Tensor] = {"x": x}
    exec("import torch\n" + "\n".join(lines[:-1]), scope)  # what Python gives for the same lines
    if writes in ("by rows", "through a view", "by a mask"):
        assert found is not None
        assert torch.equal(found, scope["table"])
    else:
        assert found is None
