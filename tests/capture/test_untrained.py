"""Steps without a backward are said to train nothing; those that train a part of the model are not."""

from __future__ import annotations

import pytest

from amptune.capture import capture
from amptune.capture.untrained import CUT_OFF, FROZEN
from amptune.errors import CaptureError
from tests.capture.conftest import Load

MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 5)
        {init}

    def forward(self, x):
        h = torch.relu(self.up(x)){hidden}
        return self.down(h)

def make_model(): return Net()
def make_batch(): return torch.randn(4, 8), torch.randint(5, (4,))
def loss_fn(output, batch):
    loss = F.cross_entropy(output{output}, batch[1])
    return {loss}
"""
WHOLE = {"init": "pass", "hidden": "", "output": "", "loss": "loss"}
FREEZE = "self.requires_grad_(False)"


def notes(load: Load, *, frontend: str | None = None, train: bool = True, **changes: str) -> list[str]:
    target = load(MODEL.format(**{**WHOLE, **changes}))
    frontends = ["export", "record-fake", "record-real"] if frontend is None else [frontend]
    said = capture(target, frontends=frontends, train=train).notes
    return [note for note in said if CUT_OFF in note or FROZEN in note]


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
def test_a_model_whose_parameters_are_all_frozen_trains_nothing(frontend: str, load: Load) -> None:
    (said,) = notes(load, frontend=frontend, init=FREEZE)
    assert FROZEN in said
    assert "requires_grad_(True)" in said


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
@pytest.mark.parametrize(
    "changes",
    [{"output": ".detach()"}, {"loss": "loss.detach()"}, {"output": ".argmax(1, True).float().expand(4, 5)"}],
    ids=["logits", "loss", "argmax"],
)
def test_a_loss_that_is_cut_off_from_the_parameters_is_said(frontend: str, changes: dict[str, str], load: Load) -> None:
    (said,) = notes(load, frontend=frontend, **changes)
    assert CUT_OFF in said
    assert ".detach()" in said


def test_a_number_that_was_made_a_tensor_again_is_cut_off(load: Load) -> None:
    (said,) = notes(load, loss="torch.tensor(loss.item())")
    assert ".item()" in said


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init": "self.up.requires_grad_(False)"},
        {"hidden": ".detach()"},
        {"init": FREEZE + "; self.adapter = nn.Parameter(torch.zeros(16))", "hidden": " + self.adapter"},
    ],
    ids=["all", "frozen below", "linear probe", "adapter"],
)
def test_a_step_that_trains_a_part_of_the_model_is_silent(changes: dict[str, str], load: Load) -> None:
    assert not notes(load, **changes)


def test_a_forward_alone_is_silent(load: Load) -> None:
    assert not notes(load, train=False, init=FREEZE)


def test_a_function_without_parameters_is_silent(load: Load) -> None:
    text = "class Net(nn.Module):\n    def forward(self, x):\n        return x.exp()\n"
    assert not [note for note in capture(load(text, inputs=("2x2",))).notes if CUT_OFF in note or FROZEN in note]


def test_a_model_without_a_loss_whose_output_is_detached_is_said(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 5)

        def forward(self, x):
            return self.out(x).detach()
    """
    assert any(CUT_OFF in note for note in capture(load(text, inputs=("4x8",))).notes)


def test_a_loss_that_is_a_number_is_told_to_stay_a_tensor(load: Load) -> None:
    with pytest.raises(CaptureError) as caught:
        notes(load, loss="loss.item()")
    assert "a float" in str(caught.value)
    assert "leave out .item()" in str(caught.value)


PACKED = """
class Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight.to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None

class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.ones(8, 8, dtype=torch.int8))

    def forward(self, x):
        return Multiplied.apply(x, self.weight)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Packed(), {head}

    def forward(self, x):
        return self.head(self.body(x))
"""


@pytest.mark.parametrize(
    ("head", "count"),
    [
        ("nn.Identity()", 1),
        ("nn.LayerNorm(8).requires_grad_(False)", 1),
        ("nn.Linear(8, 8)", 0),
        ("nn.Linear(8, 8, bias=False)", 0),
    ],
)
def test_a_model_of_packed_weights_trains_nothing(head: str, count: int, load: Load) -> None:
    said = capture(load(PACKED.format(head=head), inputs=("4x8",))).notes
    assert len([note for note in said if FROZEN in note]) == count
    assert not [note for note in said if CUT_OFF in note]


def test_layers_of_torch_that_no_graph_shows_are_known_to_train(load: Load) -> None:
    text = """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(8, 8)

        def forward(self, x):
            return self.cell(x)[0]{end}
    """
    for end, count in (("", 0), (".detach()", 1)):
        said = capture(load(text.format(end=end), inputs=("4x2x8",))).notes
        assert len([note for note in said if CUT_OFF in note]) == count
