"""The loss that a model makes by its ``loss_function`` runs under torch.compile, and as it was when that is undone."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from amptune import runtime


def mean_of_squares(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    return (logits.float() - labels).square().mean()


class Keeps(nn.Module):
    """As models of transformers do: a property that can be set."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.made = 0

    @property
    def loss_function(self) -> Callable[..., Tensor]:
        return self.__dict__.get("_loss_function", mean_of_squares)

    @loss_function.setter
    def loss_function(self, value: Callable[..., Tensor]) -> None:
        self._loss_function = value

    def forward(self, x: Tensor) -> Tensor:
        return self.loss_function(logits=self.head(x), labels=x)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lm = Keeps()

    def forward(self, x: Tensor) -> Tensor:
        return self.lm(x)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backends that a loss was compiled with, each time that it ran; the compiler itself is not there."""
    ran: list[str] = []

    def stand_in(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ran.append(backend)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(runtime, "_compiled_losses", {})
    return ran


X = torch.randn(3, 4)


@pytest.mark.parametrize(("make", "head"), [(Keeps, "head"), (Holder, "lm.head")])
def test_the_loss_that_the_model_keeps_is_compiled_until_the_plan_is_undone(
    make: Callable[[], nn.Module], head: str, compiled: list[str]
) -> None:
    model = make()
    expected = model(X)
    before = [dict(vars(module)) for module in model.modules()]
    applied = runtime.apply_plan(model, {head: "fp32"}, compile_loss=True)
    assert torch.equal(model(X), expected)
    assert torch.equal(model(X), expected)
    assert compiled == ["inductor", "inductor"]
    applied.undo()
    assert [dict(vars(module)) for module in model.modules()] == before
    assert torch.equal(model(X), expected)
    assert len(compiled) == 2


def test_a_loss_is_compiled_by_the_backend_of_the_plan(compiled: list[str]) -> None:
    """One that the model keeps, and one that its forward calls."""
    for model in (Keeps(), Calls("function")):
        runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True, backend="cudagraphs")
        model(X)
    assert compiled == ["cudagraphs", "cudagraphs"]


def test_a_loss_that_the_user_sets_is_the_one_that_is_compiled(compiled: list[str]) -> None:
    model = Keeps()
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    model.loss_function = lambda logits, labels: logits.sum() * 0 + 7
    assert model(X).item() == 7
    assert compiled == ["inductor"]


def test_without_compile_loss_it_stays_as_it_is(compiled: list[str]) -> None:
    model = Keeps()
    runtime.apply_plan(model, {"head": "bf16"})
    model(X)
    assert compiled == []


def test_copies_and_pickles_compile_their_own(compiled: list[str]) -> None:
    model = Keeps()
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        compiled.clear()
        assert torch.equal(other(X), model(X))
        assert len(compiled) == 2
        runtime.undo_plan(other)
        assert type(other) is Keeps


def test_in_a_compiled_model_it_is_part_of_the_graph() -> None:
    model = Keeps()
    expected = model(X)
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    found = torch.compile(model, backend="eager", fullgraph=True)(X)
    torch.testing.assert_close(found, expected)


class Sometimes(Keeps):
    """Makes a loss of labels alone."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(x)
        return logits if labels is None else self.loss_function(logits=logits, labels=labels)


NOTHING = "compile_loss=True compiles nothing: Sometimes made no loss in its first forward in training"


@pytest.mark.parametrize("kind", ["itself", "copy"])
def test_a_model_that_makes_no_loss_says_so_once(kind: str, compiled: list[str]) -> None:
    model = Sometimes()
    runtime.apply_plan(model, {"head": "bf16"}, compile_loss=True)
    model = model if kind == "itself" else copy.deepcopy(model)
    model.eval()(X)
    with torch.no_grad():
        model.train()(X)
    with pytest.warns(UserWarning, match=NOTHING) as said:
        model(X)
    assert said[0].filename == __file__
    model(X)
    assert len(said) == 1
    assert compiled == []


def test_a_caller_that_awaits_no_loss_is_not_told_where_a_plan_waits_for_lazy_layers(compiled: list[str]) -> None:
    model = Sometimes()
    model.head = nn.LazyLinear(4)
    runtime.apply_plan(model, {"head": "bf16"}, compile_loss=True)
    runtime.await_no_loss(model)
    model(X)
    assert model(X).dtype == torch.bfloat16  # a warning would be an error here
    assert compiled == []


def test_one_that_makes_a_loss_in_training_may_do_without_later(compiled: list[str]) -> None:
    model = Sometimes()
    runtime.apply_plan(model, {"head": "bf16"}, compile_loss=True)
    model(X, labels=X)
    model(X)
    assert compiled == ["inductor"]


def test_a_compiled_model_is_not_told_of_a_loss_outside_of_it() -> None:
    model = Sometimes()
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    torch.compile(model, backend="eager", fullgraph=True)(X)


class Calls(nn.Module):
    """Calls a cross entropy in its forward, by itself or through a module of its own or of the moment."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)
        self.criterion = nn.CrossEntropyLoss()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        logits, labels = self.head(x), torch.arange(len(x))
        if self.way == "function":
            return nn.functional.cross_entropy(logits, labels)
        if self.way == "pinned":
            return runtime.fp32(nn.functional.cross_entropy)(logits, target=labels)
        return (self.criterion if self.way == "module" else nn.CrossEntropyLoss())(logits, labels)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of logits that came to a compiled loss."""
    found: list[torch.dtype] = []

    def stand_in(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
        def run(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(logits.dtype)
            return function(logits, *args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(runtime, "_compiled_losses", {})
    return found


@pytest.mark.parametrize("way", ["function", "pinned", "module", "module of the moment"])
def test_a_cross_entropy_that_the_forward_calls_is_compiled_and_made_in_fp32(way: str, seen: list[torch.dtype]) -> None:
    model, called = Calls(way), nn.functional.cross_entropy
    sites = {"head": "bf16", "criterion": "fp32"}
    applied = runtime.apply_plan(model, sites, output_format="bf16")
    model(X)
    assert seen == []
    applied.undo()
    runtime.apply_plan(model, sites, compile_loss=True)
    found = model(X)
    assert seen == [torch.bfloat16], "nothing casts ahead of it, so no copy of the logits in float32 is in memory"
    assert found.dtype == torch.float32
    with torch.no_grad():
        logits = torch.nn.functional.linear(X.bfloat16(), model.head.weight.bfloat16(), model.head.bias.bfloat16())
        expected = called(logits.float(), torch.arange(len(X)))
    assert torch.equal(found.detach(), expected)
    assert nn.functional.cross_entropy is called, "outside of the forward it is torch's own"


def test_a_forward_that_raises_gives_torch_its_cross_entropy_back(seen: list[torch.dtype]) -> None:
    model, called = Calls("function"), nn.functional.cross_entropy
    runtime.apply_plan(model, {"head": "bf16"}, compile_loss=True)
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 5))
    assert nn.functional.cross_entropy is called


def test_losses_compiled_within_others_are_compiled_once(seen: list[torch.dtype]) -> None:
    model = Calls("function")
    runtime.apply_plan(model, {"head": "bf16"}, compile_loss=True)
    with runtime.losses_compiled("aot_eager"):
        model(X)
    assert len(seen) == 1


class KeepsCrossEntropy(Keeps):
    def forward(self, x: Tensor) -> Tensor:
        return self.loss_function(logits=self.head(x), labels=torch.arange(len(x)))


def test_a_kept_loss_is_compiled_once_whatever_it_calls() -> None:
    model, counted = KeepsCrossEntropy(), CompileCounter()
    model.loss_function = lambda logits, labels: nn.functional.cross_entropy(logits.float(), labels)
    expected = model(X)
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    model.__dict__["_amptune_loss"] = counted
    for _ in range(3):
        torch.testing.assert_close(model(X), expected)
    assert counted.frame_count == 1


def test_the_real_compiler_gives_the_same_gradients() -> None:
    model = Calls("function")
    expected = torch.autograd.grad(model(X), list(model.parameters()))
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    with runtime.losses_compiled("aot_eager"):
        found = torch.autograd.grad(model(X), list(model.parameters()))
    torch.testing.assert_close(found, expected)


def test_in_a_compiled_model_a_called_loss_is_part_of_the_graph() -> None:
    model = Calls("function")
    expected = model(X)
    runtime.apply_plan(model, {"head": "fp32"}, compile_loss=True)
    found = torch.compile(model, backend="eager", fullgraph=True)(X)
    torch.testing.assert_close(found, expected)


class Breaks(nn.Module):
    """A graph break, after which Python calls what follows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        torch._dynamo.graph_break()
        return self.inner(x)


@pytest.mark.parametrize("make", [lambda: Calls("function"), KeepsCrossEntropy], ids=["calls", "keeps"])
def test_where_a_compiled_model_breaks_its_graph_the_loss_is_no_further_frame(make: Callable[[], nn.Module]) -> None:
    frames = []
    for compile_loss in (False, True):
        torch._dynamo.reset()
        counters.clear()
        model = Breaks(make())
        if isinstance(model.inner, KeepsCrossEntropy):
            model.inner.loss_function = lambda logits, labels: nn.functional.cross_entropy(logits.float(), labels)
        runtime.apply_plan(model, {"inner.head": "bf16"}, compile_loss=compile_loss)
        compiled = torch.compile(model, backend="aot_eager")
        for _ in range(2):
            compiled(X)
        frames.append(counters["frames"]["total"])
    assert frames[0] == frames[1]
