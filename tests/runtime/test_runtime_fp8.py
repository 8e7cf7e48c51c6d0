"""FP8 linears: which operands the kernels get, how far the results are off, and that all else works as in 16 bits."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from amptune import runtime
from amptune.runtime import apply_plan, undo_plan

from .shared import Shared

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MANTISSA_BITS = {E4M3: 3, E5M2: 2}
LOWEST_EXPONENT = {E4M3: -6, E5M2: -14}
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


class Products(TorchDispatchMode):
    """Keeps the operands and scales of every scaled product, and the dtypes of every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled: list[tuple[torch.Tensor, ...]] = []
        self.others: list[set[torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::_scaled_mm":
            self.scaled.append((*args[:4], result))
        elif name in ("aten::mm", "aten::addmm"):
            self.others.append({arg.dtype for arg in args if isinstance(arg, torch.Tensor)})
        return result


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``values`` to the nearest number of an FP8 format, ties to even, by arithmetic in float64."""
    values = values.double()
    exponent = torch.floor(torch.log2(values.abs().clamp(min=1e-300))).clamp(min=LOWEST_EXPONENT[dtype])
    step = torch.exp2(exponent - MANTISSA_BITS[dtype])
    return (torch.round(values / step) * step).clamp(-LARGEST[dtype], LARGEST[dtype])


def run(model: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of input and parameters."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    output.backward(gradient.to(output.dtype))
    return [output, x.grad, *(parameter.grad for parameter in model.parameters())]


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    value, exact = value.detach().double(), exact.detach().double()
    return float((value - exact).norm() / exact.norm())


def layer(scaling: str, rows: int = 48, columns: int = 64, **site: Any) -> nn.Linear:
    linear = nn.Linear(columns, rows)
    apply_plan(linear, {"": {"format": "fp8_e4m3", "scaling": scaling, **site}})
    return linear


@pytest.mark.parametrize("tokens", [32, 21, 1])
@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_operands_are_the_nearest_fp8_numbers_and_lie_as_cuda_wants_them(scaling: str, tokens: int) -> None:
    linear = layer(scaling)
    x, gradient = torch.randn(tokens, 64).bfloat16(), torch.randn(tokens, 48).bfloat16()
    with Products() as products:
        run(linear, x, gradient)
    weight = linear.weight.detach()
    wanted = [(x, weight.t()), (gradient, weight), (gradient.t(), x)]
    assert len(products.scaled) == (2 if scaling == "rowwise_gw_hp" else 3)
    assert products.others == ([{torch.bfloat16}] if scaling == "rowwise_gw_hp" else [])
    gradient_format = E5M2 if scaling == "tensorwise" else E4M3
    formats = [(E4M3, E4M3), (gradient_format, E4M3), (gradient_format, E4M3)]
    for (a, b, scale_a, scale_b, _), (left, right), dtypes in zip(products.scaled, wanted, formats, strict=False):
        assert (a.dtype, b.dtype) == dtypes
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert all(size % 16 == 0 for size in (a.shape[1], *b.shape))
        assert scale_a.dtype == scale_b.dtype == torch.float32
        for operand, values, over in ((a, left, 1), (b, right, 0)):
            scale = _scale(
                values.float(), operand.dtype, scaling, over, is_weight=values.data_ptr() == weight.data_ptr()
            )
            expected = rounded(values.float() / scale, operand.dtype)
            found = operand.double()[: expected.shape[0], : expected.shape[1]]
            assert torch.equal(found, expected)
            assert operand.double().abs().sum() == expected.abs().sum()  # what was added is zero


def _scale(values: torch.Tensor, dtype: torch.dtype, scaling: str, over: int, *, is_weight: bool) -> torch.Tensor:
    """Largest magnitude over the largest number of the format, up to a power of two where rows have their own."""
    if scaling == "tensorwise":
        return values.abs().amax() / LARGEST[dtype]
    of_tensor = scaling == "rowwise_gw_hp" and over == 0 and is_weight and values.stride(1) == 1
    largest = values.abs().amax() if of_tensor else values.abs().amax(over, keepdim=True)
    return torch.exp2(torch.ceil(torch.log2(largest.double() / LARGEST[dtype]))).float()


@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_results_are_the_products_of_the_operands(scaling: str) -> None:
    """Against float64, with nothing but the rounding of the result to bfloat16 or float32 between."""
    linear = layer(scaling)
    x, gradient = torch.randn(2, 24, 64).bfloat16(), torch.randn(2, 24, 48).bfloat16()
    with Products() as products:
        output, x_gradient, weight_gradient, bias_gradient = run(linear, x, gradient)
    assert output.dtype == torch.bfloat16
    assert weight_gradient.dtype == bias_gradient.dtype == torch.float32
    scales = [x.float().abs().amax(-1, keepdim=True), linear.weight.detach().abs().amax(1)]
    if scaling == "tensorwise":
        scales = [scale.amax() for scale in scales]
    a, b = products.scaled[0][:2]
    exact = (a.double() @ b.double()).reshape(2, 24, 48)
    factor = [scale / 448 if scaling == "tensorwise" else torch.exp2(torch.ceil(torch.log2(scale / 448)))
              for scale in scales]  # fmt: skip
    exact = exact * factor[0] * factor[1] + linear.bias
    torch.testing.assert_close(output.double(), exact, rtol=2**-8, atol=4e-3)  # some kernels round before the bias
    torch.testing.assert_close(bias_gradient, gradient.float().sum((0, 1)), rtol=1e-5, atol=1e-5)
    limit = 0.004 if scaling == "rowwise_gw_hp" else 0.08
    flat, flat_gradient = x.double().flatten(0, 1), gradient.double().flatten(0, 1)
    assert error(weight_gradient, flat_gradient.t() @ flat) < limit
    assert error(x_gradient, gradient.double() @ linear.weight.double()) < 0.08


@pytest.mark.parametrize("scaling", runtime.SCALINGS)
@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 64), (2, 3, 5, 64), (0, 64), (2, 0, 64)])
def test_any_leading_dimensions(scaling: str, shape: tuple[int, ...]) -> None:
    linear = layer(scaling)
    exact = nn.Linear(64, 48)
    exact.load_state_dict(linear.state_dict())
    x, gradient = torch.randn(shape), torch.randn(*shape[:-1], 48)
    for ours, theirs in zip(run(linear, x, gradient), run(exact, x, gradient), strict=True):
        assert ours.shape == theirs.shape
        if theirs.norm():
            assert error(ours, theirs) < 0.12
        else:
            assert not ours.any()


@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_output_features_are_padded_and_cut(scaling: str) -> None:
    linear = layer(scaling, rows=37, pad=16)
    exact = nn.Linear(64, 37)
    exact.load_state_dict(linear.state_dict())
    x, gradient = torch.randn(5, 64), torch.randn(5, 37)
    for ours, theirs in zip(run(linear, x, gradient), run(exact, x, gradient), strict=True):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < 0.08
    assert linear(x).is_contiguous()


@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_only_gradients_that_are_asked_for_are_computed(scaling: str) -> None:
    linear = layer(scaling)
    gradient = torch.ones(16, 48, dtype=torch.bfloat16)

    def products(x: torch.Tensor) -> int:
        linear.zero_grad()
        with Products() as seen:
            linear(x).backward(gradient)
        return len(seen.scaled) + len(seen.others)

    assert products(torch.ones(16, 64)) == 2
    assert products(torch.ones(16, 64, requires_grad=True)) == 3
    linear.weight.requires_grad_(False)
    assert products(torch.ones(16, 64, requires_grad=True)) == 2
    assert linear.weight.grad is None
    assert linear.bias.grad is not None
    with torch.no_grad(), Products() as seen:
        linear(torch.ones(16, 64))
    assert len(seen.scaled) == 1


@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_what_is_not_finite_stays_so_and_zeros_stay_zero(scaling: str) -> None:
    linear = layer(scaling)
    nn.init.zeros_(linear.bias)
    x = torch.randn(16, 64)
    for bad in (float("inf"), float("nan")):
        x[3, 5] = bad
        output, x_gradient, weight_gradient, _ = run(linear, x, torch.ones(16, 48))
        assert output[3].isnan().all()
        assert not weight_gradient[:, 5].isfinite().any()
        assert x_gradient.isfinite().all()
    assert not any(value.any() for value in run(linear, torch.zeros(16, 64), torch.zeros(16, 48)))


def losses(model: nn.Module, steps: int = 12) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 16, generator=generator), torch.randint(0, 3, (16,), generator=generator)
    x.requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, fused=True)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


PLAN = {"layer": "fp8_e4m3:tensorwise", "head": {"format": "fp8_e4m3", "scaling": "rowwise", "pad": 16}}


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_it_trains_as_float32_does_with_casts_reused_within_a_forward(use_reentrant: bool | None) -> None:
    model = Shared(use_reentrant, width=16)
    exact = losses(copy.deepcopy(model))
    apply_plan(model, PLAN)
    found = losses(model)
    assert exact[-1] < 0.8 * exact[0]
    assert found == pytest.approx(exact, abs=0.02)


def test_a_shared_weight_is_cast_twice_at_most_in_a_forward_and_anew_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Shared(width=16)
    apply_plan(model, {"layer": "fp8_e4m3:tensorwise", "head": "bf16"})
    x = torch.randn(16, 16)
    with Products() as products:
        model(x).sum().backward()
    _, second, third = (b.data_ptr() for _, b, *_ in products.scaled[:3])
    assert second == third, "what is used again is kept from then on"
    once = model.layer.weight.grad.clone()
    model.layer.weight.data.mul_(2)  # raises no version
    with Products() as products:
        again = model(x)
    assert products.scaled[0][1].double().abs().amax() == 448
    assert error(again, _plain(model)(x)) < 0.1
    model.layer.weight.data.div_(2)
    monkeypatch.setattr(runtime, "_in_backward", lambda: True)  # each cast is made anew
    model.zero_grad()
    model(x).sum().backward()
    assert torch.equal(model.layer.weight.grad, once)


def _plain(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    undo_plan(plain)
    return plain


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # which is what the tracer does
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_it_compiles_in_one_graph_and_computes_the_same(scaling: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 37))
    apply_plan(model, {"0": f"fp8_e4m3:{scaling}", "2": {"format": "fp8_e4m3", "scaling": scaling, "pad": 16}})
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, gradient = torch.randn(2, 21, 64), torch.randn(2, 21, 37)
    eager = run(model, x, gradient)
    for ours, theirs in zip(run(compiled, x, gradient), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


class Launched:
    """A kernel by its name: what Triton's does on a GPU, in torch."""

    def __init__(self, kernel: Callable[..., None], grids: list[Any]) -> None:
        self.kernel, self.grids = kernel, grids

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        self.grids.append(grid)
        return self.kernel


def find(matrix: Tensor, of_rows: Tensor, of_columns: Tensor, _height: int, _width: int, **how: int) -> None:
    bits = matrix.float().view(torch.int32) & 0x7FFFFFFF
    for found, by, dim in ((of_rows, how["by_row"], 1), (of_columns, how["by_column"], 0)):
        if by:
            each = bits.amax(dim) if by == 2 else bits.amax().view(1)
            found[: len(each), 0] = torch.maximum(found[: len(each), 0], each)


def cast(
    matrix: Tensor, low: Tensor | None, turned: Tensor | None, of_rows: Tensor, of_columns: Tensor,
    height: int, width: int, **how: int,
) -> None:  # fmt: skip
    if low is not None:
        low.copy_(matrix / of_rows[: height if how["by_row"] == 2 else 1])
    if turned is not None:
        turned.copy_((matrix / of_columns[: width if how["by_column"] == 2 else 1].t()).t())


@pytest.mark.parametrize("scaling", runtime.SCALINGS)
def test_fused_casts_compute_the_same(scaling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Any] = []
    linear = layer(scaling, rows=37, pad=16)
    x, gradient = torch.randn(200, 64), torch.randn(200, 37)
    x[3], gradient[:, 5] = 1000 * x[3], 0
    plain = run(linear, x, gradient)
    monkeypatch.setattr(runtime, "_worth_fusing", lambda matrix: True)
    monkeypatch.setattr(runtime, "_cast_kernels", lambda: (Launched(find, grids), Launched(cast, grids)))
    for ours, theirs in zip(run(linear, x, gradient), plain, strict=True):
        assert torch.equal(ours, theirs)
    assert grids == [(1, 1)] * 2 + [(2, 1)] * 4, "the weight, the input and the gradient, two passes each"


@pytest.mark.parametrize(("scaling", "casts"), [("tensorwise", 3), ("rowwise", 3), ("rowwise_gw_hp", 2)])
def test_no_kernel_runs_for_a_gradient_that_no_product_takes_in_fp8(
    scaling: str, casts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer's, whose input takes no gradient."""
    grids: list[Any] = []
    linear, x, gradient = layer(scaling), torch.randn(32, 64), torch.randn(32, 48)
    linear(x).backward(gradient)
    expected = linear.weight.grad
    linear.zero_grad()
    monkeypatch.setattr(runtime, "_worth_fusing", lambda matrix: True)
    monkeypatch.setattr(runtime, "_cast_kernels", lambda: (Launched(find, grids), Launched(cast, grids)))
    linear(x).backward(gradient)
    assert torch.equal(linear.weight.grad, expected)
    assert len(grids) == 2 * casts


def test_without_triton_the_casts_run_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels() -> Any:
        raise ImportError("no Triton here")

    linear, x, gradient = layer("rowwise"), torch.randn(16, 64), torch.randn(16, 48)
    plain = run(linear, x, gradient)
    monkeypatch.setattr(runtime, "_worth_fusing", lambda matrix: True)
    monkeypatch.setattr(runtime, "_cast_kernels", kernels)
    monkeypatch.setattr(runtime, "_not_fused", [])
    with pytest.warns(UserWarning, match="FP8 casts run unfused, as Triton failed: no Triton here"):
        found = run(linear, x, gradient)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    run(linear, x, gradient)  # is not tried again, nor said again


@pytest.mark.usefixtures("process_group")
def test_ddp_and_fully_shard_train_it() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    alone = Shared(width=16)
    apply_plan(alone, PLAN)
    parallel, sharded = copy.deepcopy(alone), copy.deepcopy(alone)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    expected = losses(alone)
    assert losses(nn.parallel.DistributedDataParallel(parallel)) == pytest.approx(expected, rel=1e-3)
    assert losses(sharded) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_state_and_undo(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = Shared(width=16)
    before = copy.deepcopy(model.state_dict())
    apply_plan(model, PLAN)
    twin = copied(model)
    x = torch.randn(4, 16)
    assert torch.equal(twin(x), model(x))
    assert list(twin.state_dict()) == list(before)
    assert (
        repr(twin.layer) == "PlannedFp8Linear(in_features=16, out_features=16, bias=True, format=fp8_e4m3:tensorwise)"
    )
    apply_plan(twin, {"layer": "bf16"})
    assert type(twin.layer) is runtime.PlannedLinear
    undo_plan(twin)
    undo_plan(model)
    assert type(twin.layer) is type(model.layer) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "site", "message"),
    [
        (nn.Linear(64, 48), "fp8_e4m3", "needs a scaling, such as 'fp8_e4m3:tensorwise'"),
        (nn.Linear(64, 48), "fp8_e4m3:row", "scaling 'row' is not one of .*did you mean 'rowwise'"),
        (nn.Linear(64, 48), "fp8_e5m2:tensorwise", "format 'fp8_e5m2' is not one of fp32, bf16, fp16, fp8_e4m3"),
        (nn.Linear(64, 48), "bf16:tensorwise", "scaling 'tensorwise' is for fp8_e4m3, and the format is bf16"),
        (nn.Linear(60, 48), "fp8_e4m3:tensorwise", "multiples of 16, and K=60"),
        (nn.Linear(64, 50), "fp8_e4m3:rowwise", "multiples of 16, and N=50; 'pad': 16 pads N"),
        (nn.LayerNorm(64), "fp8_e4m3:rowwise", "cannot compute in FP8, which is for Linear"),
        (nn.Linear(64, 48), {"format": "fp8_e4m3", "scaling": "rowwise", "how": "autocast"}, "cannot compute in FP8"),
    ],
)
def test_what_fp8_cannot_do_is_said_before_anything_runs(model: nn.Module, site: Any, message: str) -> None:
    kind = type(model)
    with pytest.raises(ValueError, match=message):
        apply_plan(model, {"": site})
    assert type(model) is kind


def test_a_gpu_without_fp8_products_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(RuntimeError, match=r"NVIDIA A100 has compute capability 8.0, and FP8 products need 8.9"):
        runtime._refuse_fp8_on(torch.device("cuda", 7))


def test_an_outer_autocast_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = layer("tensorwise"), torch.randn(4, 64)
    plain = linear(x)
    monkeypatch.setattr(runtime, "_warned_of_autocast", True)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = linear(x)
    assert torch.equal(under_autocast, plain)
