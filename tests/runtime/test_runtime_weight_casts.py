"""Weight casts are reused within one outermost forward only, and never in a way that stops training."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from amptune import runtime
from amptune.runtime import apply_plan

from .shared import Shared


@pytest.fixture(autouse=True, params=["on a CPU", "as on a GPU"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Weights are cast one by one, or those of a block together, as where that saves launches."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(runtime, "_saves_launches", lambda weight: True)
        monkeypatch.setattr(runtime, "_FEW_MODULES", 0)  # small blocks have a group each
    return str(request.param)


class _CountCasts(TorchDispatchMode):
    """Counts the casts that read one of the given parameters."""

    def __init__(self, *parameters: torch.Tensor) -> None:
        super().__init__()
        self.parameters = parameters
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sources = args[1] if "_foreach_copy_" in func.__name__ else args[:1] if "_to_copy" in func.__name__ else []
        self.count += sum(source is parameter for source in sources for parameter in self.parameters)
        return func(*args, **(kwargs or {}))


def _losses(model: nn.Module, make: Callable[..., torch.optim.Optimizer], steps: int = 8) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 8, generator=generator), torch.randint(0, 3, (16,), generator=generator)
    optimizer = make(model.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "fused_adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, fused=True),
    "fused_sgd": lambda parameters: torch.optim.SGD(parameters, lr=2.0, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_falls_as_it_does_without_reuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Shared()
    twin = copy.deepcopy(model)
    apply_plan(model, {"*": "bf16"})
    apply_plan(twin, {"*": "bf16"})
    with_reuse = _losses(model, OPTIMIZERS[name])
    monkeypatch.setattr(runtime, "_in_backward", lambda: True)  # each cast is made anew
    without = _losses(twin, OPTIMIZERS[name])
    assert with_reuse == without
    assert with_reuse[-1] < 0.8 * with_reuse[0]


def test_a_layer_called_three_times_is_cast_once_in_a_forward_and_again_in_the_next(where: str) -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    counts = []
    for _ in range(3):
        with _CountCasts(model.layer.weight) as casts:
            model(torch.randn(2, 8))
        counts.append(casts.count)
    # One by one, a cast is kept once the layer was seen to be called again.
    assert counts == ([1, 1, 1] if where == "as on a GPU" else [2, 1, 1])


def test_reuse_adds_the_gradients_of_all_calls() -> None:
    model = Shared()
    plain = copy.deepcopy(model)
    apply_plan(model, {"*": "bf16"})
    x = torch.randn(4, 8)
    model(x).float().pow(2).sum().backward()
    plain(x).pow(2).sum().backward()
    assert model.layer.weight.grad is not None
    torch.testing.assert_close(model.layer.weight.grad, plain.layer.weight.grad, rtol=0.1, atol=0.05)


def test_a_cast_made_under_no_grad_does_not_stop_gradients() -> None:
    class Peeks(Shared):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.layer(x)
            return super().forward(x)

    model = Peeks()
    apply_plan(model, {"*": "bf16"})
    model(torch.randn(2, 8)).sum().backward()
    assert model.layer.weight.grad is not None
    assert model.layer.weight.grad.abs().sum() > 0


def test_no_cast_outlives_the_forward_even_when_it_raises() -> None:
    class Raises(Shared):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise KeyboardInterrupt

    model = Raises()
    apply_plan(model, {"*": "bf16"})
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 8))
    model.layer.weight.data.zero_()
    model.layer.bias.data.zero_()
    assert model.layer(torch.ones(1, 8)).abs().sum() == 0


def test_a_call_outside_the_models_forward_sees_new_weights() -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    model.layer(torch.ones(1, 8))
    model.layer.weight.data.zero_()
    model.layer.bias.data.zero_()
    assert model.layer(torch.ones(1, 8)).abs().sum() == 0


def test_a_weight_changed_inside_the_forward_is_cast_again() -> None:
    class Normalises(Shared):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.layer(x)
            with torch.no_grad():
                self.layer.weight.zero_()
                self.layer.bias.zero_()
            return first + self.layer(x)

    model = Normalises()
    apply_plan(model, {"layer": "bf16"})
    x = torch.randn(2, 8)
    with torch.no_grad():
        expected = model.layer(x)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    plain = Shared()
    checkpointed = Shared(use_reentrant)
    checkpointed.load_state_dict(plain.state_dict())
    gradients = []
    for model in (plain, checkpointed):
        apply_plan(model, {"*": "bf16"})
        x = torch.ones(4, 8, requires_grad=True)
        model(x).float().pow(2).sum().backward()
        gradients.append([p.grad for p in model.parameters()] + [x.grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
        assert one is not None


def test_the_whole_model_under_reentrant_checkpointing_trains() -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    x = torch.ones(4, 8, requires_grad=True)
    checkpoint(model, x, use_reentrant=True).float().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_gradient_accumulation_adds_up() -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    separately = []
    for x in (a, b):
        model.zero_grad()
        model(x).float().sum().backward()
        separately.append(model.layer.weight.grad)
    model.zero_grad()
    model(a).float().sum().backward()
    model(b).float().sum().backward()
    torch.testing.assert_close(model.layer.weight.grad, separately[0] + separately[1])


def test_two_threads_keep_their_casts_apart() -> None:
    import threading

    model = Shared()
    apply_plan(model, {"*": "bf16"})
    x = torch.randn(4, 8)
    expected = model(x)
    outputs: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: outputs.append(model(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 4
    assert all(torch.equal(output, expected) for output in outputs)


def test_inference_mode_works_before_and_after_training() -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    with torch.inference_mode():
        model(torch.randn(2, 8))
    model(torch.randn(2, 8)).sum().backward()
    assert model.layer.weight.grad is not None


def test_functional_call_with_other_parameters_uses_them() -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.func.functional_call(model, zeros, (torch.ones(1, 8),)).abs().sum() == 0


def test_per_sample_gradients_of_torch_func() -> None:
    model = Shared()
    apply_plan(model, {"*": "bf16"})
    parameters = dict(model.named_parameters())
    x = torch.randn(3, 8)

    def loss(values: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, values, (row[None],)).float().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    model(x).float().sum().backward()
    torch.testing.assert_close(gradients["layer.weight"].sum(0), model.layer.weight.grad, rtol=0.05, atol=0.05)


class _Blocks(nn.Module):
    """Two blocks of a norm and two layers, one of them shared, and a head that is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2)]
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, skip: bool = False) -> torch.Tensor:
        for block in self.blocks:
            x = x + (block[1](x) if skip else block(x))
        return self.head(x)


class _CountNodes(TorchDispatchMode):
    """Counts casts, one by one and of many tensors at once."""

    def __init__(self) -> None:
        super().__init__()
        self.single = self.together = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.single += "_to_copy" in func.__name__
        self.together += "_foreach_copy_" in func.__name__
        return func(*args, **(kwargs or {}))


PLAN = {"blocks.**": "bf16", "head": {"format": "bf16", "pad": 8}}


def test_the_weights_of_a_block_are_cast_together_and_so_are_their_gradients(where: str) -> None:
    model, x = _Blocks(), torch.randn(4, 8).bfloat16()
    apply_plan(model, PLAN)
    with _CountNodes() as forward:
        loss = model(x).float().sum()
    with _CountNodes() as backward:
        loss.backward()
    if where == "as on a GPU":
        assert forward.together == backward.together == 2, "one for each block"
        assert forward.single == 3, "weight and bias of the head, which are padded, and the loss"
    else:
        assert forward.together == backward.together == 0
        assert forward.single == 3 + 12


def test_small_blocks_are_cast_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_saves_launches", lambda weight: True)
    monkeypatch.setattr(runtime, "_FEW_MODULES", 4)
    model = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(6)])
    whole = nn.Sequential(*model)
    apply_plan(whole, {"**": "bf16"})
    with _CountNodes() as forward:
        whole(torch.randn(4, 8).bfloat16())
    assert forward.together == 2, "four blocks, then two"


def test_gradients_are_those_of_single_casts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model = torch.randn(4, 8), _Blocks()
    twin = copy.deepcopy(model)
    apply_plan(model, PLAN)
    apply_plan(twin, PLAN)
    model(x).float().pow(2).sum().backward()
    monkeypatch.setattr(runtime, "_reusable_casts", lambda: None)
    twin(x).float().pow(2).sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == torch.float32
        assert torch.equal(mine.grad, theirs.grad), name  # type: ignore[arg-type]


def test_what_the_forward_does_not_use_gets_no_gradient_and_what_is_frozen_none_either() -> None:
    model = _Blocks()
    model.blocks[1][1].requires_grad_(False)
    apply_plan(model, PLAN)
    model(torch.randn(4, 8), skip=True).float().sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {"blocks.0.1.weight", "blocks.0.1.bias", "head.weight", "head.bias"}


def test_gradients_of_gradients_go_through_a_cast_of_many() -> None:
    model = _Blocks()
    apply_plan(model, PLAN)
    x = torch.randn(4, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x).float().pow(2).sum(), x, create_graph=True)
    slope.pow(2).sum().backward()
    weight = model.blocks[0][1].weight.grad
    assert weight is not None
    assert weight.abs().sum() > 0


def test_a_copy_casts_its_own_weights_and_a_loaded_state_is_seen() -> None:
    model, x = _Blocks(), torch.randn(4, 8)
    apply_plan(model, PLAN)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0)
    assert not torch.equal(model(x), twin(x))
    model.load_state_dict(twin.state_dict(), assign=True)
    assert torch.equal(model(x), twin(x))


def test_what_is_frozen_thawed_written_or_cast_between_two_steps_is_seen() -> None:
    model, x = _Blocks(), torch.randn(4, 8)
    apply_plan(model, PLAN)
    layer = model.blocks[0][1]

    def output() -> torch.Tensor:
        model.zero_grad()
        result: torch.Tensor = model(x)
        result.float().sum().backward()
        return result

    before = output()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    assert torch.equal(output(), before)
    assert layer.weight.grad is None
    layer.requires_grad_(True)
    assert torch.equal(output(), before)
    assert layer.weight.grad is not None
    layer.weight.data = layer.weight.data * 2
    after = output()
    assert not torch.equal(after, before)
    with torch.no_grad():
        assert torch.equal(model(x), after)
    layer.to(torch.bfloat16)
    assert torch.equal(output(), after)
    assert layer.weight.grad.dtype == torch.bfloat16
    layer.weight = nn.Parameter(torch.zeros(8, 8))
    layer.bias = nn.Parameter(torch.zeros(8))
    output()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


class _Rewrites(_Blocks):
    """Its forward changes a layer after a norm of the same block has run, as a teacher's running average may."""

    def forward(self, x: torch.Tensor, skip: bool = False) -> torch.Tensor:
        norm, first, second = self.blocks[0]
        x = norm(x)
        with torch.no_grad():
            first.weight.mul_(2.0)
            second.bias.add_(1.0)
        return second(first(x))


def test_a_weight_changed_after_its_group_was_cast_is_cast_again() -> None:
    model, x = _Rewrites(), torch.randn(4, 8)
    apply_plan(model, {"blocks.**": "bf16"})
    norm, first, second = model.blocks[0]
    output = model(x)
    with torch.no_grad():
        assert torch.equal(output, second(first(norm(x))))


def test_norms_without_weights_and_layers_without_biases_share_a_group() -> None:
    model = nn.Sequential(nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    apply_plan(model, {"0": "bf16", "1": "bf16", "2": "bf16"})
    x = torch.randn(4, 8)
    for _ in range(2):
        model.zero_grad()
        output = model(x)
        output.float().sum().backward()
        assert model[1].weight.grad is not None
    first, second = model[1], model[2]
    low = F.linear(F.layer_norm(x.bfloat16(), (8,)), first.weight.bfloat16())
    assert torch.equal(output, F.linear(low, second.weight.bfloat16(), second.bias.bfloat16()))


def test_a_layer_that_computes_its_weight_from_now_on_is_no_longer_cast_with_its_group() -> None:
    model, x = _Blocks(), torch.randn(4, 8)
    apply_plan(model, {"blocks.**": "bf16"})
    before = model(x)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(model.blocks[0][1])
    torch.testing.assert_close(model(x), before, rtol=0.02, atol=0.02)
    with torch.no_grad():
        model.blocks[0][1].weight_g.mul_(2.0)
    after = model(x)
    assert not torch.allclose(after, before, rtol=0.02, atol=0.02)
    after.float().sum().backward()
    assert model.blocks[0][1].weight_g.grad is not None


def test_a_large_block_is_cast_in_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_saves_launches", lambda weight: True)
    monkeypatch.setattr(runtime, "_FEW_MODULES", 0)
    monkeypatch.setattr(runtime, "_GROUP_ELEMENTS", 100)
    model = _Blocks()
    apply_plan(model, PLAN)
    with _CountNodes() as forward:
        model(torch.randn(4, 8).bfloat16())
    assert forward.together == 4, "norm and first layer, second layer; twice"


@pytest.mark.parametrize(
    ("path", "block"),
    [("blocks.3.attn.qkv", "blocks.3"), ("layers.0.blocks.1.mlp.fc", "layers.0.blocks.1"), ("net.4", "net"),
     ("stages.2.down.0", "stages.2"), ("head", "")],
)  # fmt: skip
def test_a_block_is_named_by_its_last_number(path: str, block: str) -> None:
    assert runtime._block_of(path) == block
