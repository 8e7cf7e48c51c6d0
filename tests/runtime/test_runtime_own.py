"""Parameters and buffers that a module holds beside its layers, read as casts while its forward runs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from amptune import runtime


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.0)
        self.table = nn.Parameter(torch.randn(1, 9, 8))
        self.register_buffer("waves", torch.randn(1, 9, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        return self.drop(x + self.table[:, :length] + self.waves[:, :length])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.positions = Positions()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.gain = nn.Parameter(torch.full((8,), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.positions(self.embed(x))
        for block in self.blocks:
            x = block(x)
        return self.gain * x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.1))
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.dtype)
        return x + self.scale * self.fc(x)


LAYERS: dict[str, Any] = {"embed": "bf16", "blocks.*.fc": "bf16"}
HELD: dict[str, Any] = {"positions.table": "bf16", "positions.waves": "bf16", "blocks.*.scale": "bf16", "gain": "bf16"}
X = torch.randn(2, 5, 8)


def test_without_them_a_plan_leaves_the_stream_in_fp32() -> None:
    model = Net()
    runtime.apply_plan(model, LAYERS)
    assert model(X).dtype == torch.float32
    assert model.blocks[1].seen == [torch.float32]


def test_the_stream_has_their_format_and_they_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    applied = runtime.apply_plan(model, LAYERS | HELD)
    out = model(X)
    assert out.dtype == torch.bfloat16
    assert model.blocks[1].seen == [torch.bfloat16]
    out.float().sum().backward()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values())
    assert applied.sites["gain"].how == "own"
    applied.undo()
    assert type(model) is Net
    assert type(model.positions) is Positions
    assert not [name for name in vars(model.positions) if name.startswith("_amptune")]
    assert model(X).dtype == torch.float32


def test_gradients_are_those_of_the_cast_written_by_hand() -> None:
    torch.manual_seed(1)
    model = Net()
    twin = copy.deepcopy(model)
    runtime.apply_plan(model, {"gain": "bf16"})
    runtime.apply_plan(twin, {})
    model(X).sum().backward()
    low = twin.gain.bfloat16()
    twin.gain.data = low.float().detach()
    twin(X).sum().backward()
    assert model.gain.grad is not None
    assert twin.gain.grad is not None
    assert torch.equal(model.gain.grad, twin.gain.grad.bfloat16().float())


def test_outside_of_the_forward_the_parameter_is_itself() -> None:
    """Weights are initialised, averaged and loaded through the attribute: a cast would take them without a word."""
    model = Net()
    runtime.apply_plan(model, HELD)
    assert model.gain is model._parameters["gain"]
    with torch.no_grad():
        model.gain.fill_(3.0)
        model.positions.table.zero_()
    assert torch.equal(model.state_dict()["gain"], torch.full((8,), 3.0))
    assert not model.positions.table.any()
    model.gain = nn.Parameter(torch.zeros(8))
    assert not model(X).any()
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 7))
    assert model.positions.waves.dtype == torch.float32


def test_changed_weights_are_read_anew() -> None:
    model = Net()
    runtime.apply_plan(model, LAYERS | HELD)
    first = model(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    first.float().sum().backward()
    optimizer.step()
    model.blocks.requires_grad_(False)
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.bias.zero_()
        model.positions.table.zero_()
        model.positions.waves.zero_()
    assert not torch.equal(model(X), first)


def test_copies_and_pickles_read_as_casts_too() -> None:
    model = Net()
    runtime.apply_plan(model, LAYERS | HELD)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X))
        assert other(X).dtype == torch.bfloat16
        runtime.undo_plan(other)
        assert type(other) is Net


def test_applied_twice_is_applied_once() -> None:
    model = Net()
    runtime.apply_plan(model, LAYERS | HELD)
    cls = type(model.positions)
    runtime.apply_plan(model, LAYERS | HELD)
    assert type(model.positions) is cls


def test_under_compile() -> None:
    model = Net().eval()
    runtime.apply_plan(model, LAYERS | HELD)
    for block in model.blocks:
        block.seen = _Forgets()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X), model(X))


class _Forgets(list):  # type: ignore[type-arg]
    def append(self, value: object) -> None:
        pass


def test_a_recomputed_forward_reads_casts() -> None:
    model = Net()
    runtime.apply_plan(model, LAYERS | HELD)

    def loss() -> torch.Tensor:
        return model(X).float().square().mean()

    loss().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(loss, use_reentrant=False).backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(map(torch.equal, found, expected))


class Recomputing(nn.Module):
    """Checkpoints a method, which the backward calls outside of the forward."""

    def __init__(self, *, use_reentrant: bool | None) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.embed = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.full((8,), 0.3))
        self.past = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 8)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        seen.append(self.scale.dtype)
        return x + torch.relu(self.scale * self.fc(x) + nn.functional.linear(x, self.past.weight) + self.past(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        if self.use_reentrant is None:
            return self.inner(x)
        return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=self.use_reentrant)  # type: ignore[no-any-return]


seen: list[torch.dtype] = []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_method_reads_casts(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    plain, model = Recomputing(use_reentrant=None), Recomputing(use_reentrant=use_reentrant)
    model.load_state_dict(plain.state_dict())
    sites: dict[str, Any] = dict.fromkeys(("embed", "fc", "past", "scale"), "bf16")
    for each in (plain, model):
        runtime.apply_plan(each, sites | {"past.weight": {"format": "bf16", "how": "read"}})
        seen.clear()
        each(X).float().square().mean().backward()
        assert set(seen) == {torch.bfloat16}
        assert each.scale.dtype == torch.float32
    for (name, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert found.grad is not None, name
        assert expected.grad is not None
        assert torch.equal(found.grad, expected.grad), name


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ({"gain": "fp8_e4m3:tensorwise"}, "cast to fp32, bf16 or fp16"),
        ({"gain": {"format": "bf16", "pad": 8}}, "not padded"),
        ({"gain": {"format": "bf16", "how": "swap"}}, "leave out 'how'"),
        ({"gains": "bf16"}, "did you mean 'gain'"),
        ({"blocks.*.scales": "bf16"}, "does not have"),
        ({"embed.weight": "bf16"}, "name 'embed', or give it how='read'"),
        ({"embed.weight": {"format": "bf16", "how": "own"}}, "name 'embed', or give it how='read'"),
        ({"gain": {"format": "bf16", "how": "read"}}, "leave out 'how'"),
        ({"**.bias": "bf16"}, "does not have"),
    ],
)
def test_what_cannot_be_is_said(sites: dict[str, Any], words: str) -> None:
    model = Net()
    with pytest.raises(ValueError, match=words):
        runtime.apply_plan(model, sites)
    assert type(model) is Net


class Listed(nn.Module):
    """Parameters in lists, one of them within a dict of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.gains = nn.ParameterList(torch.randn(8) for _ in range(3))
        self.shifts = nn.ModuleDict({"in": nn.ParameterDict({"a,b": torch.randn(8), "c": torch.randn(8)})})
        self.tail = nn.Parameter(torch.randn(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        for gain in self.gains:
            x = x * gain
        for _, shift in self.shifts["in"].items():  # type: ignore[operator]
            x = x + shift
        return x * self.gains[-1] + self.tail


LISTED: dict[str, Any] = {"fc": "bf16", "gains.*": "bf16", "shifts.in.a,b": "bf16", "shifts.in.c": "bf16",
                          "tail": "bf16"}  # fmt: skip


def test_lists_of_parameters_read_as_casts() -> None:
    model = Listed()
    before = copy.deepcopy(model.state_dict())
    applied = runtime.apply_plan(model, LISTED)
    assert len(applied.sites) == 7
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        out = other(X)
        assert out.dtype == torch.bfloat16
        assert other.gains[0] is other._modules["gains"]._parameters["0"]
        assert all(gain.dtype == torch.float32 for gain in other.gains)
        assert list(other.state_dict()) == list(before)
    model(X).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(X), model(X))
    applied.undo()
    assert type(model.gains) is nn.ParameterList
    assert type(model.shifts["in"]) is nn.ParameterDict
    assert not [name for module in model.modules() for name in vars(module) if name.startswith("_amptune")]
    assert model(X).dtype == torch.float32


def test_a_list_alone_decides_nothing_of_what_holds_it() -> None:
    model = Listed()
    runtime.apply_plan(model, {"fc": "bf16", "gains.0": "bf16"})
    assert model(X).dtype == torch.float32
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 7))
    assert model.gains[0].dtype == torch.float32


class Tied(nn.Module):
    """A table that embeds and is the head, layers whose weights are used without a call, a head by a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.mixer = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1, groups=8))
        self.gate = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + nn.functional.conv1d(x.mT, self.mixer[0].weight, self.mixer[0].bias, padding=1, groups=8).mT
        x = self.fc(x) * torch.sigmoid(nn.functional.linear(x, self.gate.weight, self.gate.bias))
        return x @ self.head.weight.T


READ: dict[str, Any] = {
    f"{layer}.{name}": {"format": "bf16", "how": "read"} for layer in ("mixer.0", "gate") for name in ("weight", "bias")
} | {"embed.weight": {"format": "bf16", "how": "read"}}
IDS = torch.arange(10).view(2, 5)


def test_weights_that_are_read_past_their_layers_read_as_casts() -> None:
    torch.manual_seed(0)
    model = Tied()
    applied = runtime.apply_plan(model, {"embed": "bf16", "fc": "bf16"} | READ)
    out = model(IDS)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS), out)
        assert other.gate.weight is other.gate._parameters["weight"]
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(IDS), out)
    model.gate.weight = nn.Parameter(torch.full((8, 8), -torch.inf))
    model.gate.bias = nn.Parameter(torch.zeros(8))
    assert not torch.equal(model(IDS), out)
    applied.undo()
    assert type(model.embed) is nn.Embedding
    assert type(model.gate) is nn.Linear
    assert not [name for module in model.modules() for name in vars(module) if name.startswith("_amptune")]
    assert model(IDS).dtype == torch.float32


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.embed(ids), self.embed.weight, self.embed(ids)


@pytest.mark.parametrize("own", ["fp32", "fp16", None])
def test_a_layer_reads_its_own_weight_as_its_own_format_says(own: str | None) -> None:
    model = Twice()
    rows = model.embed(IDS)
    read = {"embed.weight": {"format": "bf16", "how": "read"}}
    runtime.apply_plan(model, read if own is None else {"embed": own} | read)
    before, weight, after = model(IDS)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(before, rows.to(runtime.FORMATS[own or "fp32"]))
    assert torch.equal(after, before)


def test_a_layer_may_be_read_past_and_called_under_autocast() -> None:
    torch.manual_seed(0)
    model = Tied()
    runtime.apply_plan(model, {"embed": "bf16", "fc": {"format": "bf16", "how": "autocast"}} | READ)
    expected = Tied()
    expected.load_state_dict(model.state_dict())
    runtime.apply_plan(expected, {"embed": "bf16", "fc": "bf16"} | READ)
    assert torch.equal(model(IDS), expected(IDS))


def test_a_glob_means_the_layers_tensors_only_where_it_says_so() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Tied() for _ in range(2))

    applied = runtime.apply_plan(Blocks(), {"blocks.*.gate.*": {"format": "bf16", "how": "read"}})
    assert sorted(applied.sites) == [f"blocks.{i}.gate.{name}" for i in range(2) for name in ("bias", "weight")]


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("btd,kde->btke", x, self.weight).amax(2)


def test_a_layer_with_a_format_has_its_tensors_in_it() -> None:
    with pytest.raises(ValueError, match="has a format, which its tensors follow"):
        runtime.apply_plan(nn.Sequential(Gate()), {"0": "bf16", "0.weight": "bf16"})
