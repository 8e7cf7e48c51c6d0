"""How batches go into models, and what counts as a loss."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from amptune.capture import capture
from amptune.capture.target import COMPILED, STAND_IN, call_arguments, loss_inside, stand_in_loss, tensors_in
from amptune.errors import CaptureError, TargetError, WorkError
from tests.capture.conftest import Load


class One(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Two(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + mask


class Keywords(nn.Module):
    def forward(self, x: torch.Tensor, **rest: Any) -> torch.Tensor:
        return x


X, Y, Z = torch.ones(2, 3), torch.zeros(2), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("model", "batch", "args", "kwargs"),
    [
        (One(), X, [X], {}),
        (One(), (X, Y), [X], {}),
        (One(), [X, Y], [X], {}),
        (Two(), ((X, Z), Y), [X, Z], {}),
        (Two(), (X, Z), [X, Z], {}),
        (Two(), ({"x": X, "mask": Z, "other": Y}, Y), [], {"x": X, "mask": Z}),
        (One(), {"x": X, "labels": Y}, [], {"x": X}),
        (Keywords(), {"x": X, "labels": Y}, [], {"x": X, "labels": Y}),
    ],
)
def test_how_a_batch_goes_into_a_model(model: nn.Module, batch: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    given, named = call_arguments(model, batch)
    assert [id(value) for value in given] == [id(value) for value in args]
    assert {name: id(value) for name, value in named.items()} == {name: id(value) for name, value in kwargs.items()}


def test_a_dict_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(CaptureError, match="a dict with inputs, but forward takes x"):
        call_arguments(One(), {"inputs": X})


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Pair(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor


LOSS = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (Output(X, LOSS), True),
        (Output(X), False),
        ({"loss": LOSS, "logits": X}, True),
        ({"logits": X}, False),
        ((X, LOSS), True),
        ((X, None), False),
        ((LOSS, LOSS), False),
        (Pair(X, LOSS), True),
        (LOSS, True),
        (X, False),
    ],
)
def test_the_loss_inside_an_output(output: Any, found: bool) -> None:
    assert (loss_inside(output) is LOSS) is found


def test_the_stand_in_gives_every_output_a_gradient() -> None:
    a, b = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = stand_in_loss({"a": a, "b": (b * 2, torch.ones(2, dtype=torch.int64))})
    loss.backward()
    assert loss.item() == 5.0
    assert a.grad is not None
    assert b.grad is not None
    with pytest.raises(CaptureError, match="no floating tensor"):
        stand_in_loss(torch.ones(2, dtype=torch.int64))


def test_the_loss_must_be_one_number(load: Load) -> None:
    text = """
    class Net(nn.Linear):
        def __init__(self): super().__init__(4, 3)
    def make_model(): return Net()
    def make_batch(): return torch.ones(2, 4), torch.tensor([0, 1])
    def loss_fn(output, batch): return F.cross_entropy(output, batch[1], reduction=REDUCTION)
    """
    batch = (torch.ones(2, 4), torch.tensor([0, 1]))
    target = load("REDUCTION = 'none'\n" + text.replace("    class", "class").replace("\n    ", "\n"))
    with pytest.raises(WorkError, match=r"float32 tensor of shape \(2,\)"):
        target.loss(torch.ones(2, 3), batch)
    target = load("REDUCTION = 'mean'\n" + text.replace("    class", "class").replace("\n    ", "\n"))
    assert target.loss(torch.ones(2, 3), batch).shape == ()


def test_a_stand_in_is_said_once(load: Load) -> None:
    target = load("class Net(nn.Linear):\n    def __init__(self): super().__init__(4, 3)\n", inputs=("2x4",))
    for _ in range(2):
        target.loss(target.call(target.make_model(), target.make_batch()), None)
    assert target.notes == [STAND_IN]
    assert not target.has_loss


def test_a_model_under_torch_compile_is_looked_at_without_it(load: Load) -> None:
    model = "def make_model(): return torch.compile(nn.Linear(2, 2))\n"
    target = load(model + "def make_batch(): return torch.ones(1, 2)\n")
    assert type(target.make_model()) is type(target.make_model()) is nn.Linear
    assert target.notes == [COMPILED]


def test_run_replaces_the_call(load: Load) -> None:
    text = """
    class Net(nn.Linear):
        def __init__(self): super().__init__(4, 3)
    def make_model(): return Net()
    def make_batch(): return torch.ones(2, 4)
    def run(model, batch): return model(batch) * 0
    """
    target = load(text)
    assert target.call(target.make_model(), target.make_batch()).abs().sum() == 0


def test_tensors_of_nested_values() -> None:
    nested = {"a": X, "b": [Y, (Z, {"c": X})], "d": Output(X), "e": 3}
    assert [id(tensor) for tensor in tensors_in(nested)] == [id(t) for t in (X, Y, Z, X, X)]


MODEL = """
def make_model():
    return nn.Linear(8, 8)

def make_batch():
    return {batch}
"""


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ("torch.rand(0, 8), torch.zeros(0)", "without a sample"),
        ("__import__('numpy').zeros((4, 8)), 3", "torch.from_numpy"),
        ("(_ for _ in ()).throw(RuntimeError('Found no NVIDIA driver'))", "leave out .cuda()"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_says_what_to_change(batch: str, words: str, load: Load) -> None:
    with pytest.raises(TargetError) as caught:
        load(MODEL.format(batch=batch)).make_batch()
    assert words in str(caught.value)


def test_empty_tensors_beside_others_are_no_fault(load: Load) -> None:
    batch = load(MODEL.format(batch="torch.rand(4, 8), torch.zeros(0, 4)")).make_batch()
    assert batch[1].numel() == 0


def test_an_error_that_gives_no_text_is_told_by_its_name(load: Load) -> None:
    source = """
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    class Net(nn.Module):
        def forward(self, x):
            raise Odd

    def make_model():
        return Net()

    def make_batch():
        return torch.rand(4, 8)
    """
    with pytest.raises(CaptureError, match="failed: Odd"):
        capture(load(source))
