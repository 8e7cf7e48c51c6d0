"""FP8 linears on a GPU: what the kernels take, values and speed beside torchao's float8. Run with ``pytest -m gpu -s``.

Without a GPU the comparisons of values run on the CPU, where torchao is installed.
"""

from __future__ import annotations

import copy
import gc
import os
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune import runtime
from amptune.apply import apply, check_realised
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.runtime import SCALINGS, apply_plan
from amptune.tune.running.float8 import STOCK_SCALINGS, float8_linears

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
on_gpu = pytest.mark.skipif(
    DEVICE == "cpu" or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with FP8 products"
)
RECIPES = {"tensorwise": "tensorwise", "rowwise": "rowwise", "rowwise_gw_hp": "rowwise_with_gw_hp"}
"""Our name of a scaling -> torchao's."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def float8(model: nn.Module, scaling: str) -> nn.Module:
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torchao.float8")
    config = module.Float8LinearConfig.from_recipe_name(RECIPES[scaling])
    return module.convert_to_float8_training(copy.deepcopy(model), config=config)


def ours(model: nn.Module, scaling: str) -> nn.Module:
    model = copy.deepcopy(model)
    apply_plan(model, {"**": f"fp8_e4m3:{scaling}"})
    return model


def results(model: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of input and parameters, in float64."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    output.backward(gradient.to(output.dtype))
    return [each.detach().double() for each in (output, x.grad, *(p.grad for p in model.parameters()))]


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((value - exact).norm() / exact.norm()).detach())


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("outliers", [False, True])
def test_values_are_as_near_to_float64_as_those_of_torchao(scaling: str, outliers: bool) -> None:
    model = nn.Sequential(nn.Linear(256, 384, device=DEVICE))
    x = torch.randn(512, 256, device=DEVICE).bfloat16()
    gradient = (torch.randn(512, 384, device=DEVICE) / 1000).bfloat16()
    if outliers:
        x[:, 7] *= 200
        gradient[3] *= 1000
    weight = model[0].weight.detach().double()
    exact = [x.double() @ weight.t() + model[0].bias.double(), gradient.double() @ weight,
             gradient.double().t() @ x.double(), gradient.double().sum(0)]  # fmt: skip
    theirs = results(float8(model, scaling), x, gradient)
    found = results(ours(model, scaling), x, gradient)
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    print(f"\n{scaling}{' with outliers' if outliers else ''}: relative error, amptune / torchao / between them")
    for name, one, other, reference in zip(names, found, theirs, exact, strict=True):
        print(f"  {name:16} {error(one, reference):.5f} {error(other, reference):.5f} {error(one, other):.5f}")
        assert error(one, reference) <= 1.02 * error(other, reference) + 1e-4


@pytest.mark.parametrize("scaling", STOCK_SCALINGS)
def test_torchaos_recipe_comes_and_goes_with_an_optimizer_on_the_same_parameters(scaling: str) -> None:
    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 13)).to(DEVICE)
    modules, optimizer = list(model.modules()), torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    x, y = torch.randn(32, 32, device=DEVICE), torch.randint(0, 13, (32,), device=DEVICE)

    def losses(steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    first = losses(5)
    with float8_linears(model, scaling):
        assert [type(part).__name__ for part in model] == ["Float8Linear", "GELU", "Linear"]
        second = losses(5)
    third = losses(5)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert first[0] > second[0] > third[0] > third[-1]


@on_gpu
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(1, 128), (100, 128), (3, 37, 128), (0, 128)])
def test_kernels_take_any_number_of_tokens_padding_and_bias(scaling: str, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(128, 250, device=DEVICE))
    x, gradient = torch.randn(shape, device=DEVICE), torch.randn(*shape[:-1], 250, device=DEVICE)
    exact = results(copy.deepcopy(model), x, gradient)
    plan = Plan({"0": SitePlan(Format.FP8_E4M3, scaling=scaling, pad=16)})
    apply(model, plan)
    for one, reference in zip(results(model, x, gradient), exact, strict=True):
        assert one.shape == reference.shape
        assert one.numel() == 0 or not reference.norm() or error(one, reference) < 0.12
    if x.numel():
        found = check_realised(model, lambda: model(x).float().pow(2).sum().backward(), plan)
        assert found == []


@on_gpu
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("compiled", [False, True])
def test_it_trains_as_bf16_does(scaling: str, compiled: bool) -> None:
    def losses(plan: dict[str, Any]) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).cuda()
        apply_plan(model, plan)
        run = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
        x, y = torch.randn(256, 64, device="cuda"), torch.randint(0, 64, (256,), device="cuda")
        seen = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = F.cross_entropy(run(x).float(), y)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    exact, found = losses({"**": "bf16"}), losses({"**": f"fp8_e4m3:{scaling}"})
    assert exact[-1] < 0.5 * exact[0]
    assert found[-1] == pytest.approx(exact[-1], abs=0.1 * exact[0])


@on_gpu
@pytest.mark.parametrize("scaling", SCALINGS)
def test_fused_casts_agree_with_plain_ones(scaling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours(nn.Sequential(nn.Linear(1024, 2048, device="cuda")), scaling)
    x, gradient = torch.randn(1500, 1024, device="cuda"), torch.randn(1500, 2048, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = results(model, x, gradient)
    monkeypatch.setattr(runtime, "_worth_fusing", lambda matrix: False)
    for one, other in zip(fused, results(model, x, gradient), strict=True):
        assert error(one, other) < 0.003


SHAPES = {  # (M, K, N)
    "Llama-8B up": (8192, 4096, 14336),
    "Llama-8B down": (8192, 14336, 4096),
    "Llama-0.6B up": (8192, 2048, 8192),
    "GPT-2 fc1": (16384, 768, 3072),
    "GPT-2 fc2": (16384, 3072, 768),
}


QUEUED = 20_000_000
"""Cycles, about 10 ms, for which the GPU waits until a step is queued. A linear of GPT-2 takes 0.5 ms of kernels, and
its compiled call from Python 1 to 2: without the wait these were compared, and not the kernels."""


def milliseconds(step: Callable[[], None], repeats: int = 9) -> float:
    """Of the GPU alone: what Python takes to queue the step is not in it."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(QUEUED)
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def stepper(model: nn.Module, shape: tuple[int, int, int], compiled: bool) -> Callable[[], None]:
    """Forward and backward under bfloat16 autocast, with the gradient of the input."""
    x = torch.randn(shape[0], shape[1], device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(shape[0], shape[2], device="cuda", dtype=torch.bfloat16)
    run = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        for parameter in (x, *model.parameters()):
            parameter.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            output = run(x)
        output.backward(gradient)

    return step


def measured(model: nn.Module, shape: tuple[int, int, int], compiled: bool) -> tuple[float, float]:
    """Milliseconds of a step, and the MiB that it takes at its peak."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    step = stepper(model, shape, compiled)
    torch.cuda.reset_peak_memory_stats()
    return milliseconds(step), torch.cuda.max_memory_allocated() / 2**20


ATTEMPTS = 3
"""Either may meet a slow moment of the host. What is slower is so in each of these."""


def is_slower(one: float, other: float) -> bool:
    return one > 1.1 * other + 0.02


@on_gpu
@pytest.mark.filterwarnings("ignore:torch.autocast is active")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_speed_beside_bf16_and_torchao(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, {'compiled' if compiled else 'eager'}")
    print("forward + backward, ms: (M, K, N), bf16 | amptune / torchao, peak MiB of both (amptune, casts unfused)")
    slower = []
    names = ["Llama-8B up", "GPT-2 fc1"] if compiled else list(SHAPES)
    for name in names:
        shape = SHAPES[name]
        plain = nn.Sequential(nn.Linear(shape[1], shape[2], bias=name.startswith("GPT"), device="cuda"))
        line = f"{name:22} {shape!s:22} {milliseconds(stepper(copy.deepcopy(plain), shape, compiled)):7.3f} |"
        for scaling in ("tensorwise", "rowwise") if compiled else SCALINGS:
            for _ in range(ATTEMPTS):
                (one, memory), (other, their_memory) = (
                    measured(make(plain, scaling), shape, compiled) for make in (ours, float8)
                )
                if not is_slower(one, other):
                    break
            line += f" {scaling} {one:.3f} / {other:.3f}, {memory:.0f} {their_memory:.0f}"
            if not compiled:
                with monkeypatch.context() as patched:
                    patched.setattr(runtime, "_worth_fusing", lambda matrix: False)
                    line += f" ({milliseconds(stepper(ours(plain, scaling), shape, compiled)):.3f})"
            line += " |"
            if is_slower(one, other):
                slower.append(f"{name} {scaling}: {one:.3f} ms, torchao {other:.3f} ms")
        print(line)
    assert slower == []
