"""Where torch.compile breaks a user's graph, a plan adds no graphs of its own."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from amptune import runtime
from amptune.runtime import apply_plan, how_to_apply, loss_in, own_tensors

WIDTH = 8
MOST_MORE = 1
"""Graphs that a plan may add to a model: what comes before a layer that torch.compile refuses on sight."""


class Recurrent(nn.Module):
    """Embedding, LSTM, norm and head: torch.compile takes no LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, WIDTH)
        self.rnn = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.embed(x))
        output: Tensor = self.head(self.norm(hidden))
        return output


class Experts(nn.Module):
    """Tokens go to experts by their index, so that shapes depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        weights, chosen = F.softmax(self.gate(tokens), -1).topk(2)
        output = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == index)
            if rows.numel():
                share = weights[rows, slots, None] * expert(tokens[rows])
                output = output.index_add(0, rows, share.to(output.dtype))
        return output.reshape(x.shape)


class Looks(nn.Module):
    """Scales, and reads a number of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scale
        if y.abs().amax().item() > 1e6:
            y = y / 2
        return y * self.scale


class Softmax(nn.Module):
    """A module of the user's without parameters, which breaks the graph."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return F.softmax(x, -1)


def _model(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Embedding(10, WIDTH), *parts, nn.Linear(WIDTH, WIDTH))


BREAKING: dict[str, Callable[[], nn.Module]] = {
    "lstm": Recurrent,
    "experts": lambda: _model(Experts(), Experts()),
    "own tensor": lambda: _model(Looks(), Looks()),
    "without parameters": lambda: _model(Softmax()),
    "attention": lambda: _model(nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True), Softmax()),
    "nested": lambda: _model(nn.Sequential(Looks(), Experts()), nn.LayerNorm(WIDTH)),
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _planned(model: nn.Module, number_format: str) -> nn.Module:
    paths = [path for path, module in model.named_modules() if path and how_to_apply(module)]
    held = [path for path in own_tensors(model) if path.rpartition(".")[0] not in paths]
    apply_plan(model, dict.fromkeys([*paths, *held], number_format), output_format="fp32")
    return model


def _graphs(model: nn.Module) -> tuple[int, Tensor]:
    """Graphs that compiling the model makes, and its output."""
    counters.clear()
    counter = CompileCounter()
    x = torch.arange(20).reshape(4, 5) % 10
    output = torch.compile(model, backend=counter)(x)
    output.sum().backward()
    return counter.frame_count, output


@pytest.mark.parametrize("number_format", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", BREAKING)
def test_a_plan_adds_no_graphs_where_the_model_breaks(kind: str, number_format: str) -> None:
    plain, _ = _graphs(BREAKING[kind]())
    torch._dynamo.reset()
    planned = _planned(BREAKING[kind](), number_format)
    graphs, output = _graphs(planned)
    gradients = [parameter.grad for parameter in planned.parameters()]
    planned.zero_grad()
    expected = planned(torch.arange(20).reshape(4, 5) % 10)
    expected.sum().backward()

    assert graphs <= plain + MOST_MORE
    assert torch.equal(output, expected)
    for parameter, gradient in zip(planned.parameters(), gradients, strict=True):
        assert (gradient is None and parameter.grad is None) or torch.equal(gradient, parameter.grad)


def test_one_model_that_breaks_leaves_the_next_whole() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.layer(x))

    _graphs(_planned(_model(Looks()), "bf16"))
    whole = Whole()
    apply_plan(whole, {"layer": "bf16"}, output_format="fp32")
    counter = CompileCounter()
    output = torch.compile(whole, backend=counter)(torch.ones(2, WIDTH))

    assert output.dtype == torch.float32
    assert counter.frame_count == 1
    # Linear with its casts, relu, and the cast of the output.
    assert counter.op_count == 6


def test_what_is_left_to_python_casts_no_weights_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a group are cast together, but some of its layers run in graphs that cast their own."""
    monkeypatch.setattr(runtime, "_saves_launches", lambda weight: True)
    together: list[int] = []
    cast = runtime._cast_together
    monkeypatch.setattr(runtime, "_cast_together", lambda *given: together.append(len(given)) or cast(*given))
    model = _planned(Recurrent(), "bf16")
    model(torch.zeros(1, 2, dtype=torch.int64))
    assert together  # in eager mode
    together.clear()
    _graphs(model)
    assert not together


@pytest.mark.parametrize("compile_it", [False, True], ids=["by hand", "by the plan"])
def test_a_planned_loss_is_one_graph(compile_it: bool) -> None:
    counter = CompileCounter()
    loss = loss_in("fp32", compile=compile_it, backend=counter)(lambda output, target: F.mse_loss(output, target))
    compiled = loss if compile_it else torch.compile(loss, backend=counter)
    result = compiled(torch.ones(3, dtype=torch.bfloat16), torch.zeros(3))

    assert result.dtype == torch.float32
    assert (counter.frame_count, counter.op_count) == (1, 2)
