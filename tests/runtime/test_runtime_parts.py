"""Parts of a planned model under torch.compile, each by itself."""

import copy
import dataclasses
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from amptune.runtime import apply_plan, undo_plan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.fc(x))


class Net(nn.Module):
    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 1e9:  # depends on data: a compiler that follows this forward breaks its graph here
            x = x / 2
        for block in self.blocks:
            x = block(x)
        return self.head(x)


TABLE = {"blocks.*.fc": "bf16", "head": "bf16"}
PARTS = ("blocks.*", "head")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def in_parts(model: nn.Module, table: dict[str, str] | None = None, backend: str = "aot_eager") -> nn.Module:
    return apply_plan(model, table or TABLE, compile_parts=PARTS, backend=backend).model


def test_parts_compute_what_the_plan_says_in_one_graph_for_equal_ones() -> None:
    model, x = Net(), torch.randn(5, 8)
    expected = apply_plan(copy.deepcopy(model), TABLE).model(x)
    found = in_parts(model)(x)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected)
    assert num_graphs() == 3, "for the first block, which meets FP32, the other blocks, the head"
    found.float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
def test_compiling_around_the_parts_changes_nothing(how: str) -> None:
    model, x = in_parts(Net()), torch.randn(5, 8)
    expected = model(x)
    if how == "model.compile()":
        model.compile(backend="aot_eager")
    run = torch.compile(model, backend="aot_eager") if how == "torch.compile(model)" else model
    assert torch.equal(run(x), expected)
    assert num_graphs() == 3


def test_many_kinds_of_parts_are_compiled_all() -> None:
    """Of one code torch compiles eight versions, and then goes on in eager mode with no more than a warning."""
    model, x = Net(blocks=20), torch.randn(5, 8)
    for index, block in enumerate(model.blocks):
        block.fc.extra = nn.Parameter(torch.ones(index + 1))
        block.fc.__class__ = type(f"Own{index}", (nn.Linear,), {})
    in_parts(model, {"head": "fp32"})
    for _ in range(2):
        model(x)
    assert num_graphs() == 21


def test_undo_takes_compiling_back_and_to_apply_again_compiles_nothing_anew() -> None:
    model, x = Net(), torch.randn(5, 8)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    expected = in_parts(model)(x)
    undo_plan(model)
    assert type(model) is Net
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert torch.equal(in_parts(model)(x), expected)
    assert num_graphs() == 3


@pytest.mark.parametrize("apart", [True, False])
def test_parts_in_a_region_of_autocast_get_no_code_of_another_region(
    monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """Before torch 2.13 its cache on disk does not tell BF16 from FP16 there."""
    monkeypatch.setattr("amptune.runtime.REGIONS_APART", apart)
    seen: list[bool] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        seen.append(torch._functorch.config.enable_autograd_cache)
        return graph

    region = {"": {"format": "bf16", "how": "autocast"}}
    with torch._functorch.config.patch(enable_autograd_cache=True):
        for table, is_cached in ((region, apart), (TABLE, True)):
            seen.clear()
            found = apply_plan(Net(), table, compile_parts=PARTS, backend=backend).model(torch.randn(5, 8))
            assert found.dtype is torch.bfloat16
            assert set(seen) == {is_cached}
            assert torch._functorch.config.enable_autograd_cache


@dataclasses.dataclass
class Counting:
    """A backend that has no hash."""

    count: int = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        self.count += 1
        return graph


@pytest.mark.parametrize("apart", [True, False])
def test_alike_parts_share_what_a_backend_without_a_hash_compiles(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    monkeypatch.setattr("amptune.runtime.REGIONS_APART", apart)
    backend = Counting()
    apply_plan(Net(), TABLE, compile_parts=PARTS, backend=backend).model(torch.randn(5, 8))
    assert backend.count == num_graphs() == 3


def test_undo_gives_blocks_back_as_the_user_compiled_them() -> None:
    model, x = Net(), torch.randn(5, 8)
    for block in model.blocks:
        block.compile(backend="aot_eager")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    for _ in range(2):
        in_parts(model)(x)
    undo_plan(model)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


def test_a_copy_and_an_unpickled_model_run_in_eager_mode_and_can_be_planned_again() -> None:
    model, x = in_parts(Net()), torch.randn(5, 8)
    expected = model(x)
    for found in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(found(x), expected)
        assert num_graphs() == 3, "those of the model"
        in_parts(found)
        torch.testing.assert_close(found(x), expected)
        undo_plan(found)
        assert found(x).dtype is torch.float32


def test_a_lazy_model_is_compiled_in_parts_after_its_first_forward() -> None:
    model, x = Net(), torch.randn(5, 8)
    model.head = nn.LazyLinear(3)  # type: ignore[assignment]
    in_parts(model)
    model(x)
    assert num_graphs() == 0
    assert model(x).dtype is torch.bfloat16
    assert num_graphs() == 3


def test_a_part_that_the_model_does_not_have_is_named() -> None:
    model = Net()
    with pytest.raises(ValueError, match=r"the part to compile 'block\.\*' is not in the model"):
        apply_plan(model, TABLE, compile_parts=("block.*",))
    assert type(model) is Net


def test_what_cannot_be_compiled_is_refused_before_anything_changes() -> None:
    model = Net()
    with pytest.raises(ValueError, match=r"'blocks' is a ModuleList, which is never called: name what it holds"):
        apply_plan(model, TABLE, compile_parts=("blocks",), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"Invalid backend: 'nonesuch'"):
        in_parts(model, backend="nonesuch")
    assert type(model) is Net
    assert type(model.head) is nn.Linear


def test_a_glob_leaves_lists_out() -> None:
    model, x = Net(), torch.randn(5, 8)
    apply_plan(model, TABLE, compile_parts=("*", "*.*"), backend="aot_eager").model(x)
    assert num_graphs() == 3


def test_that_no_loss_was_compiled_is_said_of_the_line_that_calls_the_model() -> None:
    model = apply_plan(Net(), TABLE, compile_loss=True, compile_parts=PARTS, backend="aot_eager").model
    with pytest.warns(UserWarning, match="compile_loss=True compiles nothing") as found:
        model(torch.randn(5, 8))
    assert found[0].filename == __file__


def test_what_wants_one_graph_is_told_why_there_is_none() -> None:
    model = in_parts(Net())
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile_parts of apply_plan"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(torch.randn(5, 8))


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


def test_parts_of_other_sizes_are_compiled_for_theirs_alone() -> None:
    """From the second size on torch compiles one code for any size: kernels that work out their sizes are slower."""
    sizes: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        sizes.extend(value for value in inputs if not isinstance(value, torch.Tensor))  # type: ignore[misc]
        return graph.forward

    model = nn.Sequential(Stage(2), Stage(4), Stage(8))
    apply_plan(model, {"*.conv": "bf16"}, compile_parts=("*",), backend=backend)
    model(torch.randn(1, 2, 32, 32)).float().sum().backward()
    assert num_graphs() == 3
    assert sizes == []
