"""Models without memory, and what may still be read."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor

from amptune.capture import capture
from amptune.capture.fakes import fake_model, map_tensors, new_fake_mode, parameters_as_fakes
from amptune.errors import CaptureError
from tests.capture.conftest import Load


def test_weights_take_no_memory(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(60_000, 60_000) for _ in range(8)))
            self.table = nn.Parameter(torch.randn(2_000_000, 5_000) * 0.02)
            self.register_buffer("mask", torch.ones(100_000, 100_000))

        def forward(self, x):
            return self.layers(x) @ self.table[:60_000] + self.mask[:8, :5_000]
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = capture(load(text, inputs=("8x60000",)), frontends=["record-fake"])
    assert found.graph["layers.0"].params[0].meta.nbytes == 60_000**2 * 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize(
    "line",
    [
        "rates = [x.item() for x in torch.linspace(0, 0.1, 4)]",
        "rates = torch.arange(4).tolist()",
        "rates = float(torch.tensor([0.1, 0.2]).mean())",
        "nn.init.trunc_normal_(self.fc.weight, std=0.02)",
        "nn.init.orthogonal_(self.fc.weight)",
        "self.fc.weight.data.normal_(0, 0.1); self.fc.bias.data.zero_()",
        "self.fc.weight.data = torch.linalg.qr(torch.randn(8, 8))[0]",
        "self.to(torch.bfloat16).float()",
        "self.to('cpu')",
        "self.load_state_dict(self.state_dict())",
    ],
)
def test_constructors_may_read_and_write_what_they_usually_do(line: str, load: Load) -> None:
    text = f"""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            {line}

        def forward(self, x):
            return self.fc(x)
    """
    found = capture(load(text, inputs=("4x8",)))
    assert (len(found.graph), found.notes) == (1, ())


def test_a_constructor_that_reads_weights_gets_real_ones(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.largest = self.fc.weight.max().item()

        def forward(self, x):
            return self.fc(x) / self.largest
    """
    found = capture(load(text, inputs=("4x8",)))
    assert found.frontend != "record-real"
    assert any("built with real weights" in note and "model.py:13" in note for note in found.notes)


def test_tied_parameters_stay_tied() -> None:
    mode = new_fake_mode()
    with parameters_as_fakes(mode):
        embed, head = nn.Embedding(8, 4), nn.Linear(4, 8)
        head.weight = embed.weight
        shared = nn.Parameter(torch.ones(3))
        a, b = nn.Module(), nn.Module()
        a.p, b.p = shared, shared
    assert head.weight is embed.weight
    assert a.p is b.p
    assert isinstance(a.p, FakeTensor)
    assert isinstance(a.p, nn.Parameter)


def test_parameters_keep_flags_and_attributes() -> None:
    param = nn.Parameter(torch.ones(3), requires_grad=False)
    param.no_decay = True  # type: ignore[attr-defined]
    with parameters_as_fakes(new_fake_mode()):
        module = nn.Module()
        module.p = param
    assert module.p.requires_grad is False
    assert module.p.no_decay is True


def test_a_real_model_becomes_fake_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4), nn.BatchNorm1d(4))
    model[0].bias = model[2].bias
    fake_model(model, new_fake_mode())
    assert all(isinstance(param, FakeTensor) for param in model.parameters())
    assert model[0].bias is model[2].bias
    assert all(isinstance(weight, FakeTensor) for weight in model[1]._flat_weights)  # type: ignore[union-attr]


def test_nested_batches_keep_their_form() -> None:
    batch = {"a": [torch.ones(1), (torch.ones(2), "text")], "b": 3}
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert doubled["a"][1][0].tolist() == [2.0, 2.0]
    assert (doubled["a"][1][1], doubled["b"]) == ("text", 3)


FORWARD = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, ids, lengths):
        x = self.fc(self.embed(ids))
        {line}
        return x
"""
INPUTS = ("ids=4x6:int64:9", "lengths=4:int64:5")


@pytest.mark.parametrize(
    "line",
    [
        "x = x[:, : int(lengths.max()) + 1]",
        "x = x if bool((ids >= 0).all()) else x * 2",
        "lengths = lengths.tolist()",
        "table = torch.zeros(3); table[0] = 1.0; x = x * table.tolist()[0]",
    ],
)
def test_integers_of_the_batch_may_be_read(line: str, load: Load) -> None:
    target = load(FORWARD.format(line=line), inputs=INPUTS)
    assert capture(target, frontends=["record-fake"]).graph["fc"].calls == 1


@pytest.mark.parametrize(
    "line",
    [
        "x = x * x.sum().item()",
        "total = torch.zeros(()); total += x.detach().sum(); x = x * total.item()",
        "table = torch.zeros(4); table[:] = x.detach().sum((1, 2)); x = x if table[0] > 0 else x * 2",
        "table = torch.zeros(4, 6); table.view(-1).copy_(x.detach()[..., 0].flatten()); bool(table.sum() + 1 > 0)",
    ],
)
def test_what_depends_on_fakes_may_not(line: str, load: Load) -> None:
    target = load(FORWARD.format(line=line), inputs=INPUTS)
    with pytest.raises(CaptureError, match="a value that only a real run has"):
        capture(target, frontends=["record-fake"])
    assert capture(target).frontend == "record-real"


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("return self.fc(self.embed(ids + 20))", "out of range"),
        ("return F.cross_entropy(self.fc(self.embed(ids)).flatten(0, 1), ids.flatten() + 20)", "target"),
        ("return self.fc(self.embed(ids).double())", "one dtype"),
    ],
)
def test_what_a_real_run_would_refuse_is_refused(forward: str, message: str, load: Load) -> None:
    text = f"""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(9, 8), nn.Linear(8, 8)

        def forward(self, ids):
            {forward}
    """
    with pytest.raises(CaptureError) as caught:
        capture(load(text, inputs=("4x6:int64:9",)), frontends=["record-fake"])
    assert message in str(caught.value)


def test_a_target_that_is_ignored_may_be_out_of_range(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(9, 8), nn.Linear(8, 9)

        def forward(self, ids):
            targets = ids.flatten().masked_fill(ids.flatten() == 3, 255)
            return F.cross_entropy(self.fc(self.embed(ids)).flatten(0, 1), targets, ignore_index=255)
    """
    target = load(text, inputs=("4x6:int64:9",))
    for frontend in ("export", "record-fake"):
        assert capture(target, frontends=[frontend]).frontend == frontend


def test_layers_that_are_alike_ask_torch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = FakeTensor.__torch_dispatch__

    def ask(cls: type, func: object, *given: object) -> object:
        asked.append(str(func))
        return original(func, *given)

    monkeypatch.setattr(FakeTensor, "__torch_dispatch__", classmethod(ask))
    with parameters_as_fakes(new_fake_mode()):
        layers = [nn.Linear(8, 8)]
        first = len(asked)
        layers += [nn.Linear(8, 8) for _ in range(20)]
    assert len(asked) == first > 0
    assert all(type(param) is FakeTensor and param.requires_grad for layer in layers for param in layer.parameters())
