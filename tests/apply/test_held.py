"""Which of the tensors that modules hold beside their layers a plan may cast, on captured models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from amptune.apply import apply, check_realised, held_tensors, held_values, plannable_modules
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(8, 8)
{init}

    def forward(self, x):
        x = self.inner(x)
{forward}
        return self.out(x)


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 6, 8), torch.zeros(4, 6, dtype=torch.long)


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten()){loss}
"""

Find = Callable[..., dict[str, str]]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    def found(init: str, forward: str, loss: str = "") -> dict[str, str]:
        indent = "        "
        text = HEAD.format(
            init="\n".join(indent + line for line in init.split("; ")),
            forward="\n".join(indent + line for line in forward.split("; ")),
            loss=loss,
        )
        path = tmp_path / "net.py"
        path.write_text(text)
        target = load_target(TargetSpec(str(path)))
        model = target.make_model().train()
        x = target.make_batch()[0]

        def run() -> None:
            with torch.no_grad():
                model(x)

        return dict(held_tensors(model, capture(target).graph, plannable_modules(model, run), run))

    return found


P = "self.p = nn.Parameter(torch.randn(8))"


@pytest.mark.parametrize(
    ("init", "forward"),
    [
        (P, "x = x + self.p"),
        ("self.p = nn.Parameter(torch.randn(8, 8))", "x = x @ self.p"),
        ("self.register_buffer('p', torch.randn(1, 9, 8))", "x = x + self.p[:, :x.size(1)]"),
        ("self.p = nn.Parameter(torch.randn(1, 1, 8))", "x = torch.cat([self.p.expand(len(x), -1, -1), x], 1)[:, 1:]"),
        ("self.p = nn.Parameter(torch.randn(9, 8))", "x = x + self.p[torch.arange(6)]"),
    ],
)
def test_what_meets_a_planned_layer(find: Find, init: str, forward: str) -> None:
    assert find(init, forward) == {"p": "own"}


PAIR = "self.v = nn.Parameter(torch.randn(8, 8)); self.g = nn.Parameter(torch.rand(8, 1))"


@pytest.mark.parametrize(
    ("init", "forward", "names"),
    [
        (P, "x = x * torch.exp(self.p)", "p"),
        (P, "x = x + self.p; x = x + torch.sigmoid(self.p)", "p"),
        (PAIR, "x = F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True))", "v g"),
        ("self.register_buffer('p', torch.rand(8, 8))", "x = x @ torch.softmax(self.p / 2, -1)", "p"),
        (P, "x = x * nn.Softplus()(self.p)", "p"),
    ],
)
def test_what_the_forward_computes_with_before(find: Find, init: str, forward: str, names: str) -> None:
    assert find(init, forward) == dict.fromkeys(names.split(), "late")


@pytest.mark.parametrize(
    ("init", "forward", "names"),
    [
        ("self.p = nn.ParameterList(torch.randn(8) for _ in range(2))", "x = (x + self.p[0]) * self.p[1]", "p.0 p.1"),
        ("self.p = nn.ParameterDict({'a': torch.randn(8)})", "x = x + self.p['a']", "p.a"),
    ],
)
def test_entries_of_lists_of_parameters(find: Find, init: str, forward: str, names: str) -> None:
    assert find(init, forward) == dict.fromkeys(names.split(), "own")


@pytest.mark.parametrize(
    ("init", "forward", "expected"),
    [
        ("self.e = nn.Embedding(6, 8)", "x = x + self.e(torch.arange(6)); x = x @ self.e.weight.mT @ x",
         {"e.weight": "read"}),
        ("self.l = nn.ModuleList([nn.Linear(8, 8, bias=False)])", "x = F.linear(x, self.l[0].weight)",
         {"l.0.weight": "read"}),
        ("self.l = nn.Linear(8, 8)", "x = F.linear(x, F.normalize(self.l.weight, dim=1))", {"l.weight": "late"}),
        ("self.l = nn.Linear(8, 8)", "x = self.l(x)", {}),
        ("self.l = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))", "x = F.linear(x, self.l.weight)", {}),
    ],
)  # fmt: skip
def test_what_is_read_past_the_layer_that_has_it(find: Find, init: str, forward: str, expected: dict[str, str]) -> None:
    assert find(init, forward) == expected


@pytest.mark.parametrize(
    ("init", "forward"),
    [
        ("self.p = nn.Parameter(torch.tensor(2.0))", "x = x * self.p"),  # a scalar raises nothing
        (P, "x = x + self.p.sum()"),
        ("self.register_buffer('p', torch.zeros(8))", "self.p.add_(x.mean((0, 1)).detach()); x = x + self.p"),
        ("self.register_buffer('p', torch.zeros(8))", "self.p.data.add_(1.0); x = x + self.p"),
        ("self.register_buffer('p', torch.zeros(8))", "self.p = self.p + x.mean((0, 1)).detach(); x = x + self.p"),
        (P, "pass"),
    ],
)
def test_what_does_not(find: Find, init: str, forward: str) -> None:
    assert find(init, forward) == {}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.unused = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.fc(x)


def _own(number_format: Format) -> SitePlan:
    return SitePlan(number_format, how="own")


def _check(model: nn.Module, plan: Plan) -> list[str]:
    apply(model, plan)
    return list(map(str, check_realised(model, lambda: model(torch.randn(2, 8)).float().sum().backward(), plan)))


def test_a_plan_of_them_is_in_force() -> None:
    plan = Plan(sites={"fc": SitePlan(Format.BF16), "scale": _own(Format.BF16)})
    model = Scaled()
    assert _check(model, plan) == []
    assert model(torch.randn(2, 8)).dtype == torch.bfloat16
    assert set(held_values(model)) == {"scale", "unused", "fc.weight", "fc.bias"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.embed(ids)) @ self.embed.weight.T


def test_a_plan_of_a_table_that_is_the_head_too_is_in_force() -> None:
    read = SitePlan(Format.BF16, how="read")
    plan = Plan({"embed": SitePlan(Format.BF16), "fc": SitePlan(Format.BF16), "embed.weight": read})
    model = Tied()
    apply(model, plan)
    ids = torch.arange(6)
    assert [str(m) for m in check_realised(model, lambda: model(ids).float().sum().backward(), plan)] == []


def test_one_that_nothing_reads_is_said() -> None:
    found = _check(Scaled(), Plan(sites={"fc": SitePlan(Format.BF16), "unused": _own(Format.BF16)}))
    assert len(found) >= 1
    assert "unused" in found[0]
    assert "nothing reads it" in found[0]
