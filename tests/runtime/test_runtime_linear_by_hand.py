"""Linear layers by hand: known by what they compute, run with weights that are cast as those of a Linear are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from amptune.runtime import apply_plan, how_to_apply, linear_layout


class HandLinear(nn.Module):
    """As transformers' Conv1D is: the weight is the transpose of a Linear's."""

    def __init__(self, outputs: int, inputs: int, bias: bool = True) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 4)
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        product = flat @ self.weight if self.bias is None else torch.addmm(self.bias, flat, self.weight)
        return product.view(*hidden.shape[:-1], self.outputs)


class Subclass(nn.Linear):
    pass


class Scaled(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 1.01


class WithActivation(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).relu()


class WithDropout(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(hidden), 0.5, self.training)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 2


class WithGradientOfItsOwn(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(_HalfGradient.apply(hidden))  # type: ignore[no-untyped-call]


class Remembers(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.last = hidden
        return super().forward(hidden)


class WithOption(HandLinear):
    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return super().forward(hidden) * scale


class WithMask(HandLinear):
    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__(outputs, inputs)
        self.register_buffer("mask", torch.ones(inputs, outputs))


class Logs(HandLinear):
    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__(outputs, inputs)
        self.seen: list[float] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.seen.append(float(hidden.mean()))
        return super().forward(hidden)


class KeptInFloat32(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(hidden.float())


class RefusesBfloat16(HandLinear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        assert hidden.dtype == torch.float32
        return super().forward(hidden)


LINEAR: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "transposed": (lambda: HandLinear(8, 24), "in_out"),
    "square": (lambda: HandLinear(8, 8), "in_out"),
    "no bias": (lambda: HandLinear(8, 24, bias=False), "in_out"),
    "subclass": (lambda: Subclass(24, 8), "out_in"),
}
OTHERS = [
    Scaled,
    WithActivation,
    WithDropout,
    WithGradientOfItsOwn,
    Remembers,
    WithOption,
    WithMask,
    Logs,
    KeptInFloat32,
    RefusesBfloat16,
]


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_layer_by_hand_is_known_by_trying(name: str) -> None:
    make, layout = LINEAR[name]
    assert linear_layout(make()) == layout
    with torch.device("meta"):
        assert linear_layout(make()) == layout
    assert how_to_apply(make()) == "swap"


def test_the_layer_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    assert linear_layout(transformers.pytorch_utils.Conv1D(8, 24)) == "in_out"


@pytest.mark.parametrize("make", OTHERS)
def test_what_computes_or_does_something_else_is_left_alone(make: Callable[[int, int], nn.Module]) -> None:
    before = torch.get_rng_state()
    module = make(8, 24)
    after = torch.get_rng_state()
    assert linear_layout(module) is None
    assert how_to_apply(module) == "autocast"
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)


def test_one_with_hooks_is_left_alone_though_one_without_was_tried() -> None:
    assert linear_layout(HandLinear(8, 24)) == "in_out"
    module = HandLinear(8, 24)
    module.register_forward_hook(lambda _module, _args, output: output * 2)
    assert linear_layout(module) is None


def test_a_number_that_it_computes_with_makes_a_difference() -> None:
    class Weighted(HandLinear):
        factor = 1.0

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) * self.factor

    plain, other = Weighted(8, 24), Weighted(8, 24)
    other.factor = 2.0
    assert linear_layout(plain) == "in_out"
    assert linear_layout(other) is None


class Block(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(16, 24), make(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = self.layer(input=hidden) if isinstance(self.layer, nn.Linear) else self.layer(hidden=hidden)
        return self.last(hidden)


def _train(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(x)
    output.float().square().sum().backward()
    return [
        output.detach(),
        *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None),
    ]


@pytest.mark.parametrize("number_format", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", [name for name in LINEAR if name != "square"])
def test_it_computes_what_it_did_in_a_region_of_its_own(name: str, number_format: str) -> None:
    model, x = Block(LINEAR[name][0]), torch.randn(2, 7, 16)
    twin = copy.deepcopy(model)
    plan: dict[str, Any] = dict.fromkeys(("first", "last"), number_format)
    applied = apply_plan(model, plan | {"layer": number_format})
    apply_plan(twin, plan | {"layer": {"format": number_format, "how": "autocast"}})
    for found, should in zip(_train(model, x), _train(twin, x), strict=True):
        assert torch.equal(found, should)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    applied.undo()
    assert type(model.layer) is type(LINEAR[name][0]())
    assert not [key for key in vars(model.layer) if "amptune" in key]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch.compile looks at it after a graph break
def test_it_compiles_without_a_graph_break() -> None:
    model, x = Block(LINEAR["transposed"][0]), torch.randn(2, 7, 16)
    apply_plan(model, {"*": "bf16"})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=0.05, atol=0.05)
    torch._dynamo.reset()
