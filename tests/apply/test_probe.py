"""tied_by_run: modules whose outputs meet in an op that takes one dtype, found by running."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune.apply import how_to_apply, plannable_modules, tied_by_run
from amptune.core.graph import INPUT


class Attends(nn.Module):
    """A residual stream, rotary factors that are cast to its dtype, and a product with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.final = nn.LayerNorm(8)
        self.head = nn.Linear(8, 7)
        self.projection = nn.Parameter(torch.randn(8, 3))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed(tokens)
        factor = torch.arange(8.0).cos().to(x.dtype)
        a = F.scaled_dot_product_attention(self.q(x) * factor, self.k(x), self.v(x))
        x = self.final(x + self.o(a))
        return self.head(x), x @ self.projection


TOKENS = torch.tensor([[0, 1, 2]])


def _each(model: nn.Module) -> dict[str, list[str]]:
    return {
        path: [path] for path, module in model.named_modules() if how_to_apply(module) and list(module.parameters())
    }


def test_ties_follow_casts_to_the_dtype_of_another_tensor() -> None:
    model = Attends()
    ties = tied_by_run(model, lambda: model(TOKENS), _each(model)).groups
    assert sorted(map(sorted, ties)) == [[INPUT, "final"], ["embed", "k", "q", "v"]]


class Shifts(nn.Module):
    def __init__(self, shift: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.p = nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 8)
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.shift(self.layer(x), self.p)).relu()


@pytest.mark.parametrize(
    ("shift", "is_idle"),
    [
        (lambda x, p: x + p.to(x.dtype), True),
        (lambda x, p: x + p[: p.shape[0]].view(1, -1).to(x), True),
        (lambda x, p: x + p.type_as(x), True),
        (lambda x, p: x + p.float(), True),
        (lambda x, p: x + p, False),
        (lambda x, p: x.to(p.dtype) + p, False),
        (lambda x, p: x + p.to(x.dtype) + p, False),
    ],
)
def test_tensors_that_are_cast_to_what_they_meet(
    shift: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], is_idle: bool
) -> None:
    model = Shifts(shift)
    each = {path: [path] for path in ("layer", "p", "out")}
    assert ("p" in tied_by_run(model, lambda: model(torch.randn(2, 8)), each).idle) is is_idle


def test_it_leaves_the_model_as_it_was() -> None:
    model = Attends()
    before = {name: (type(module), list(vars(module))) for name, module in model.named_modules()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tied_by_run(model, lambda: model(TOKENS), _each(model))
    assert {name: (type(module), list(vars(module))) for name, module in model.named_modules()} == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_of_the_models_own_leaves_it_as_it_was_too() -> None:
    model = Attends()
    with pytest.raises(IndexError):
        tied_by_run(model, lambda: model(torch.tensor([[99]])), _each(model))
    assert type(model) is Attends
    assert type(model.q) is nn.Linear


def test_groups_are_tied_as_wholes() -> None:
    model = Attends()
    groups = {"projections": ["q", "k", "v"], "rest": ["embed", "o"], "end": ["final", "head"]}
    assert tied_by_run(model, lambda: model(TOKENS), groups).groups == [{"projections", "rest"}, {"end", INPUT}]


def test_a_module_that_no_group_names_needs_fp32() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    groups = {"first": ["0"], "last": ["2"]}
    assert tied_by_run(model, lambda: model(torch.ones(1, 4)), groups).groups == [{"first", INPUT}]


def test_assignment_into_a_tensor_ties_what_is_written_to_what_it_is_written_into() -> None:
    class Scatters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            y[torch.tensor([0])] = self.b(x)[:1]
            return y

    model = Scatters()
    assert tied_by_run(model, lambda: model(torch.ones(2, 4)), _each(model)).groups == [{"a", "b"}]


def test_what_feeds_an_op_without_a_16_bit_kernel_stays_in_fp32() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            spectrum = torch.fft.rfft(self.a(x) + self.b(x))
            return self.c(torch.fft.irfft(spectrum * spectrum.abs()))

    model = Mixes()
    assert tied_by_run(model, lambda: model(torch.ones(2, 4)), _each(model)).groups == [{"a", "b", INPUT}]


def test_an_error_that_fp32_does_not_cure_is_raised() -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.add(self.a(x), torch.ones(3))

    model = Wrong()
    with pytest.raises(RuntimeError, match="size of tensor"):
        tied_by_run(model, lambda: model(torch.ones(2, 4)), _each(model))


def test_modules_that_cast_for_themselves_tie_nothing() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.GRU(8, 8))
    groups = {str(n): [str(n)] for n in range(4)}
    assert tied_by_run(model, lambda: model(torch.tensor([[0, 1]])), groups).groups == []


def test_plannable_modules_are_the_finest_that_are_called() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.read_only = nn.Linear(8, 8)
            self.unused = nn.Linear(8, 8)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.relu = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.relu(self.normed(self.layer(x))), self.read_only.weight)

    model = Mixed()
    found = plannable_modules(model, lambda: model(torch.ones(1, 2, 8)))
    assert found == {
        "layer.self_attn": "autocast", "layer.linear1": "swap", "layer.linear2": "swap", "layer.norm1": "swap",
        "layer.norm2": "swap", "normed": "autocast",
    }  # fmt: skip
    assert all("forward" not in vars(module) for module in model.modules())


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16, use_cache=False,
        )
    )  # fmt: skip


def test_llamas_embedding_is_tied_to_its_attention() -> None:
    model = _llama()
    layers = [f"model.layers.{n}." for n in range(2)]
    groups = {"embed": ["model.embed_tokens"], "head": ["lm_head"], "norm": ["model.norm"]}
    for name in ("input_layernorm", "post_attention_layernorm"):
        groups[name] = [layer + name for layer in layers]
    for part, names in {"self_attn": "q k v o", "mlp": "gate up down"}.items():
        for name in names.split():
            groups[name] = [f"{layer}{part}.{name}_proj" for layer in layers]
    ties = tied_by_run(model, lambda: model(input_ids=torch.tensor([[0, 1, 2]])), groups).groups
    assert ties == [{"embed", "q", "k", "v"}]


class Asks(nn.Module):
    """What a run of torch functions does not show: TorchScript, and a question for the dtype."""

    def __init__(self, asks: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.scripted = torch.jit.trace(nn.Linear(8, 8), torch.randn(2, 8))
        self.asks = asks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.asks(self, self.a(x), self.b(x)))


def _only_fp32(_model: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if b.dtype != torch.float32:
        raise TypeError("b is to be float32")
    return a * b


def _alike(_model: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    assert a.dtype == b.dtype
    return a + b


@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        (lambda model, a, b: model.scripted(a) + b, [[INPUT, "a"]]),
        (_only_fp32, [[INPUT, "b"]]),
        (_alike, [["a", "b"]]),
    ],
    ids=["torchscript", "a question for FP32", "a question for one dtype"],
)
def test_code_that_is_not_looked_into_ties_what_it_does_not_take(
    asks: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor], expected: list[list[str]]
) -> None:
    model = Asks(asks)
    ties = tied_by_run(model, lambda: model(torch.randn(2, 8)), {path: [path] for path in "abc"})
    assert sorted(map(sorted, ties.groups)) == expected
    assert all(call.error for call in ties.fixing)


def test_a_model_that_fails_in_any_format_is_not_searched_for_the_one_that_runs() -> None:
    def fails(*_: object) -> torch.Tensor:
        raise ValueError("no data")

    model = Asks(fails)
    with pytest.raises(ValueError, match="no data"):
        tied_by_run(model, lambda: model(torch.randn(2, 8)), {path: [path] for path in "abc"})
