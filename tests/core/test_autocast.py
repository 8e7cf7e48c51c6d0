"""The dtypes that the propagation predicts, against what torch does: on the CPU, and on fake CUDA tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from amptune.capture.cost import einsum_products
from amptune.core.autocast import promoted, realise
from amptune.core.graph import Param, PrecisionGraph, Site, TensorMeta
from amptune.core.recipes import RECIPES, Recipe

X = torch.randn(4, 8)
SQUARE = torch.randn(2, 8, 8)
IMAGE = torch.randn(2, 8, 8, 8)
SEQUENCE = torch.randn(2, 8, 16)
POSITIVE = torch.rand(4, 8) * 0.5 + 0.25
WEIGHT = torch.randn(8, 8)
VECTOR = torch.randn(8)

# Name in the op table -> (function of the floating inputs, inputs).
CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "linear": (F.linear, (X, WEIGHT)),
    "matmul": (torch.matmul, (X, WEIGHT)),
    "mm": (torch.mm, (X, WEIGHT)),
    "bmm": (torch.bmm, (SQUARE, SQUARE)),
    "addmm": (torch.addmm, (VECTOR, X, WEIGHT)),
    "baddbmm": (torch.baddbmm, (SQUARE, SQUARE, SQUARE)),
    "einsum": (lambda a, b: torch.einsum("ij,kj->ik", a, b), (X, WEIGHT)),
    "conv1d": (F.conv1d, (SEQUENCE, torch.randn(4, 8, 3))),
    "conv2d": (F.conv2d, (IMAGE, torch.randn(4, 8, 3, 3))),
    "conv_transpose2d": (F.conv_transpose2d, (IMAGE, torch.randn(8, 4, 3, 3))),
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, (SQUARE, SQUARE, SQUARE)),
    "layer_norm": (lambda x: F.layer_norm(x, (8,)), (X,)),
    "rms_norm": (lambda x: F.rms_norm(x, (8,)), (X,)),
    "group_norm": (lambda x: F.group_norm(x, 2), (IMAGE,)),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), (IMAGE,)),
    "softmax": (lambda x: torch.softmax(x, -1), (X,)),
    "log_softmax": (lambda x: torch.log_softmax(x, -1), (X,)),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), (X,)),
    "exp": (torch.exp, (X,)),
    "log": (torch.log, (POSITIVE,)),
    "log1p": (torch.log1p, (POSITIVE,)),
    "pow": (lambda x: torch.pow(x, 2), (X,)),
    "square": (torch.square, (X,)),
    "local_response_norm": (lambda x: F.local_response_norm(x, 2), (IMAGE,)),
    "rsqrt": (torch.rsqrt, (POSITIVE,)),
    "sqrt": (torch.sqrt, (POSITIVE,)),
    "reciprocal": (torch.reciprocal, (POSITIVE,)),
    "acos": (torch.acos, (POSITIVE,)),
    "atanh": (torch.atanh, (POSITIVE,)),
    "erfinv": (torch.erfinv, (POSITIVE,)),
    "tan": (torch.tan, (X,)),
    "softplus": (F.softplus, (X,)),
    "sum": (lambda x: x.sum(-1), (X,)),
    "mean": (lambda x: x.mean(-1), (X,)),
    "var": (lambda x: x.var(-1), (X,)),
    "std": (lambda x: x.std(-1), (X,)),
    "prod": (lambda x: x.prod(-1), (X,)),
    "cumsum": (lambda x: x.cumsum(-1), (X,)),
    "cumprod": (lambda x: x.cumprod(-1), (X,)),
    "norm": (lambda x: torch.norm(x, dim=-1), (X,)),
    "linalg_vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), (X,)),
    "amax": (lambda x: x.amax(-1), (X,)),
    "normalize": (lambda x: F.normalize(x), (X,)),
    "cosine_similarity": (F.cosine_similarity, (X, X)),
    "cdist": (torch.cdist, (X, X)),
    "add": (torch.add, (X, X)),
    "mul": (torch.mul, (X, X)),
    "div": (torch.div, (X, POSITIVE)),
    "gelu": (F.gelu, (X,)),
    "silu": (F.silu, (X,)),
    "relu": (F.relu, (X,)),
    "sigmoid": (torch.sigmoid, (X,)),
    "tanh": (torch.tanh, (X,)),
    "clamp": (lambda x: x.clamp(0, 1), (X,)),
    "where": (lambda x, y: torch.where(torch.ones(4, 8, dtype=torch.bool, device=x.device), x, y), (X, X)),
    "masked_fill": (lambda x: x.masked_fill(torch.ones(4, 8, dtype=torch.bool, device=x.device), 0.0), (X,)),
    "dropout": (lambda x: F.dropout(x, 0.5), (X,)),
    "addcmul": (torch.addcmul, (X, X, X)),
    "addcdiv": (torch.addcdiv, (X, X, POSITIVE)),
    "atan2": (torch.atan2, (X, POSITIVE)),
    "bilinear": (F.bilinear, (X, X, torch.randn(4, 8, 8))),
    "dot": (torch.dot, (VECTOR, VECTOR)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), (X, WEIGHT)),
    "prelu": (F.prelu, (X, torch.rand(1))),
    "cat": (lambda a, b: torch.cat([a, b]), (X, X)),
    "stack": (lambda a, b: torch.stack([a, b]), (X, X)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (IMAGE,)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), (IMAGE[None],)),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), (IMAGE[None],)),
    "soft_margin_loss": (lambda x: F.soft_margin_loss(x, torch.ones(4, 8, device=x.device)), (X,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), (IMAGE,)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (IMAGE,)),
    "mse_loss": (F.mse_loss, (X, X)),
    "l1_loss": (F.l1_loss, (X, X)),
    "smooth_l1_loss": (F.smooth_l1_loss, (X, X)),
    "kl_div": (lambda x, y: F.kl_div(x, y, reduction="batchmean"), (X, POSITIVE)),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.zeros(4, dtype=torch.int64, device=x.device)), (X,)),
    "nll_loss": (lambda x: F.nll_loss(x, torch.zeros(4, dtype=torch.int64, device=x.device)), (X,)),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, (X, POSITIVE)),
}
WITHOUT_FAKE_CUDA = {"scaled_dot_product_attention", "group_norm", "interpolate", "ctc_loss"}
"""Fake CUDA tensors have no kernel for these on a machine without CUDA."""


def predicted(name: str, tensors: tuple[torch.Tensor, ...], outputs: int, recipe: Recipe, device: str) -> list[str]:
    inputs = tuple(TensorMeta(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors)
    results = tuple(TensorMeta((2, 2), "float32") for _ in range(outputs))
    graph = PrecisionGraph()
    graph.add_site(Site("#op", name, "function", "", inputs=inputs, outputs=results))
    return list(realise(graph, recipe, device)["#op"].outputs)  # type: ignore[arg-type]


def tensors_of(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [each for each in result if isinstance(each, torch.Tensor)]


@contextlib.contextmanager
def fake_cuda(dtype: torch.dtype) -> Iterator[Any]:
    """CUDA autocast on fake tensors: a context manager would switch itself off on a machine without CUDA."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32], ids=["from-bf16", "from-fp32"])
@pytest.mark.parametrize("name", CASES)
def test_cpu_autocast(name: str, given: torch.dtype) -> None:
    function, tensors = CASES[name]
    tensors = tuple(tensor.to(given) for tensor in tensors)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = tensors_of(function(*tensors))
    except RuntimeError as error:
        pytest.skip(f"torch refuses: {error}")
    actual = [str(result.dtype).removeprefix("torch.") for result in results]
    assert predicted(name, tensors, len(actual), RECIPES["autocast-bf16"], "cpu") == actual


@pytest.mark.parametrize("given", [torch.float16, torch.float32], ids=["from-fp16", "from-fp32"])
@pytest.mark.parametrize("name", sorted(set(CASES) - WITHOUT_FAKE_CUDA))
def test_cuda_autocast_on_fake_tensors(name: str, given: torch.dtype) -> None:
    function, tensors = CASES[name]
    with fake_cuda(torch.float16):
        fakes = tuple(torch.empty(tensor.shape, dtype=given, device="cuda") for tensor in tensors)
        results = tensors_of(function(*fakes))
        actual = [str(result.dtype).removeprefix("torch.") for result in results]
    assert predicted(name, fakes, len(actual), RECIPES["autocast-fp16"], "cuda") == actual


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_binary_cross_entropy_raises_on_cuda_alone_whatever_it_is_given(dtype: torch.dtype) -> None:
    with fake_cuda(torch.float16), pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(torch.rand(4, device="cuda", dtype=dtype), torch.rand(4, device="cuda"))
    tensor = TensorMeta((4,), str(dtype).removeprefix("torch."))
    graph = PrecisionGraph()
    graph.add_site(Site("#op", "binary_cross_entropy", "function", "", inputs=(tensor,), outputs=(tensor,)))
    assert realise(graph, RECIPES["autocast-fp16"], "cuda")["#op"].raises
    assert not realise(graph, RECIPES["autocast-fp16"], "cpu")["#op"].raises
    assert not realise(graph, RECIPES["fp32"], "cuda")["#op"].raises


def chain(*sites: Site) -> PrecisionGraph:
    graph = PrecisionGraph()
    for site in sites:
        graph.add_site(site)
    for site in sites:
        for source, tensor in zip(site.sources, site.inputs, strict=True):
            if source in graph:
                graph.add_tensor(source, site.id, tensor)
    return graph


FLOAT = TensorMeta((4, 8), "float32", True)


def op(name: str, kind: str, *sources: str, **more: Any) -> Site:
    return Site(name, kind, "function", "", inputs=(FLOAT,) * len(sources), outputs=(FLOAT,), sources=sources, **more)


def test_a_dtype_flows_on_until_an_op_of_the_lists_changes_it() -> None:
    graph = chain(op("a", "linear", "<input>"), op("b", "mul", "a", "a"), op("c", "softmax", "b"), op("d", "relu", "c"),
                  op("e", "matmul", "d", "b"))  # fmt: skip
    dtypes = realise(graph, RECIPES["autocast-bf16"])
    assert [dtypes[name].outputs[0] for name in "abcde"] == ["bfloat16", "bfloat16", "float32", "float32", "bfloat16"]
    assert dtypes["e"].casts == ((0, "float32", "bfloat16"),)
    assert dtypes["b"].in_half
    assert not dtypes["c"].in_half


def test_an_explicit_cast_keeps_its_target() -> None:
    graph = chain(op("a", "linear", "<input>"), op("b", "var", "a", attrs={"casts": {0: "float32"}}))
    assert realise(graph, RECIPES["autocast-fp16"])["b"].compute == "float32"


def test_an_unknown_cast_is_not_in_half() -> None:
    graph = chain(op("a", "linear", "<input>"), op("b", "var", "a", attrs={"casts": {0: ""}}))
    assert not realise(graph, RECIPES["autocast-fp16"])["b"].in_half


def test_a_parameter_without_dimensions_promotes_nothing() -> None:
    scale = (Param("scale", TensorMeta((), "float32", True)),)
    graph = chain(op("a", "linear", "<input>"), op("b", "mul", "a", params=scale), op("c", "exp", "b"),
                  op("d", "mul", "c", params=scale))  # fmt: skip
    dtypes = realise(graph, RECIPES["autocast-bf16"])
    assert dtypes["b"].outputs == (dtypes["b"].compute,) == ("bfloat16",)
    assert dtypes["d"].outputs == (dtypes["d"].compute,) == ("float32",)


def test_a_parameter_takes_part_in_a_concatenation_and_one_of_unknown_dtype_makes_it_unknown() -> None:
    token = Param("token", FLOAT)
    graph = chain(op("a", "linear", "<input>"), op("b", "cat", "a", params=(token,)),
                  op("c", "cat", "a", params=(token,), attrs={"param_casts": {"token": ""}}))  # fmt: skip
    for device in ("cuda", "cpu"):
        dtypes = realise(graph, RECIPES["autocast-bf16"], device)
        assert dtypes["b"].outputs == ("float32",)
        assert dtypes["c"].outputs == ("",)


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [("ij->ji", [(3, 4)]), ("i,j->ij", [(3,), (4,)]), ("bi,bi->bi", [(2, 3), (2, 3)]), ("bi,bi->b", [(2, 3), (2, 3)])],
)  # fmt: skip
def test_an_einsum_that_sums_nothing_is_cast_on_cuda_alone(equation: str, sizes: list[tuple[int, ...]]) -> None:
    tensors = [torch.ones(size) for size in sizes]
    inputs = tuple(TensorMeta(size, "float32") for size in sizes)
    graph = PrecisionGraph()
    site = Site("#op", "einsum", "function", "", inputs=inputs, outputs=(FLOAT,), attrs={"equation": equation},
                gemms=einsum_products(equation, sizes))  # fmt: skip
    graph.add_site(site)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = str(torch.einsum(equation, *tensors).dtype)
    assert f"torch.{realise(graph, RECIPES['autocast-bf16'], 'cpu')['#op'].outputs[0]}" == actual
    with fake_cuda(torch.bfloat16):
        actual = str(torch.einsum(equation, *(torch.empty(size, device="cuda") for size in sizes)).dtype)
    assert f"torch.{realise(graph, RECIPES['autocast-bf16'])['#op'].outputs[0]}" == actual


def test_a_region_with_autocast_off_follows_its_inputs() -> None:
    off = {"autocast": False}
    graph = chain(op("a", "linear", "<input>"), op("b", "softmax", "a", attrs=off))
    assert realise(graph, RECIPES["autocast-fp16"])["b"].compute == "float16"


def test_a_region_of_the_models_own_counts_without_a_recipe() -> None:
    graph = chain(op("a", "linear", "<input>", attrs={"autocast": "bfloat16"}))
    assert realise(graph, RECIPES["fp32"])["a"].outputs == ("bfloat16",)


def test_params_recipes_cast_the_whole_model() -> None:
    weight = Param("w", TensorMeta((8, 8), "float32", True))
    graph = chain(op("a", "linear", "<input>", params=(weight,)), op("b", "softmax", "a"))
    dtypes = realise(graph, RECIPES["params-bf16"])
    assert dtypes["a"].params == ("bfloat16",)
    assert dtypes["b"].in_half


def test_mixed_operands_of_an_op_outside_the_lists_raise() -> None:
    graph = chain(op("a", "linear", "<input>"), op("b", "index_add", "<input>", "a"))
    assert "float16 and float32" in realise(graph, RECIPES["autocast-fp16"])["b"].raises
    assert not realise(graph, RECIPES["fp32"])["b"].raises


def test_float64_is_left_alone() -> None:
    wide = TensorMeta((4, 8), "float64")
    graph = PrecisionGraph()
    graph.add_site(Site("#op", "exp", "function", "", inputs=(wide,), outputs=(wide,)))
    assert realise(graph, RECIPES["autocast-fp16"])["#op"].outputs == ("float64",)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("bfloat16", "float16"), "float32"),
        (("float16", "float32"), "float32"),
        (("int64",), ""),
        (("int64", "float16"), "float16"),
    ],
)
def test_promotion_is_torchs(dtypes: tuple[str, ...], expected: str) -> None:
    assert promoted(dtypes) == expected
    floating = [getattr(torch, dtype) for dtype in dtypes]
    if len(floating) == 2:
        assert str(torch.promote_types(*floating)) == f"torch.{expected}"
