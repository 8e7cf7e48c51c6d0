"""fp32(function) and pinned(code, function)."""

import operator
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from amptune import runtime
from amptune.runtime import fp32, pinned

LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", LOW)
def test_it_computes_in_fp32_and_casts_back(dtype: torch.dtype) -> None:
    x = torch.randn(4, 300).to(dtype)
    result = fp32(F.softmax)(x, -1)
    assert result.dtype == dtype
    assert torch.equal(result, F.softmax(x.float(), -1).to(dtype))


def test_the_intermediate_values_are_fp32s() -> None:
    """exp(12) overflows fp16 only when its result is stored there; a sum of squares shows the inside."""
    x = torch.full((1, 4), 300.0).half()
    assert torch.isinf(x.pow(2)).all()
    norm = fp32(torch.linalg.vector_norm)(x, dim=-1)
    assert norm.dtype == torch.float16
    assert norm.item() == 600.0


@pytest.mark.parametrize(
    "function",
    [torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, operator.matmul],
    ids=["function", "method", "dunder", "operator"],
)
def test_mixed_operands_are_promoted(function) -> None:  # type: ignore[no-untyped-def]
    a, b = torch.randn(2, 3), torch.randn(3, 2)
    assert fp32(function)(a.bfloat16(), b.bfloat16()).dtype == torch.bfloat16
    assert fp32(function)(a.bfloat16(), b).dtype == torch.float32
    # promote_types(bf16, fp16) is fp32: neither holds the other.
    assert fp32(function)(a.bfloat16(), b.half()).dtype == torch.float32


def test_operator_pow_and_methods() -> None:
    x = torch.tensor([300.0, 2.0]).half()
    assert fp32(operator.pow)(x, 0.5).dtype == torch.float16
    assert fp32(torch.Tensor.softmax)(x, dim=0).dtype == torch.float16
    assert torch.equal(fp32(operator.pow)(x, 2), torch.tensor([float("inf"), 4.0]).half())


def test_tensors_in_lists_dicts_and_keywords_are_cast() -> None:
    parts = [torch.ones(2).bfloat16(), torch.ones(2).bfloat16()]
    assert fp32(torch.cat)(parts).dtype == torch.bfloat16
    assert fp32(torch.stack)(tensors=tuple(parts)).dtype == torch.bfloat16

    def takes_dict(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert all(v.dtype == torch.float32 for v in values.values())
        return {k: v + 1 for k, v in values.items()}

    assert fp32(takes_dict)({"a": parts[0]})["a"].dtype == torch.bfloat16


def test_the_same_tensor_stays_the_same_tensor() -> None:
    def is_self_attention(query: torch.Tensor, key: torch.Tensor) -> bool:
        return query is key

    x = torch.ones(2).half()
    assert fp32(is_self_attention)(x, x) is True


def test_results_that_stay_fp32() -> None:
    x = torch.randn(4, 5).bfloat16()
    target = torch.tensor([0, 1, 2, 3])
    assert fp32(torch.sum)(x).dtype == torch.float32  # a scalar harms no promotion
    assert fp32(torch.div)(x, fp32(torch.sum, keep=True)(x)).dtype == x.dtype  # and stands for the dtype of x
    assert fp32(F.cross_entropy)(x, target, reduction="none").dtype == torch.float32
    assert fp32(F.softmax)(x, -1, dtype=torch.float32).dtype == torch.float32
    assert fp32(torch.argmax)(x, -1).dtype == torch.int64


def test_fp32_and_fp64_inputs_are_left_alone() -> None:
    assert fp32(torch.exp)(torch.ones(2)).dtype == torch.float32
    assert fp32(torch.exp)(torch.ones(2).double()).dtype == torch.float64


def test_in_place_functions_write_their_argument() -> None:
    x = torch.tensor([1.0, 2.0]).bfloat16()
    result = fp32(torch.Tensor.exp_)(x)
    assert result is x
    assert torch.equal(x, torch.tensor([1.0, 2.0]).exp().bfloat16())
    out = torch.empty(2).bfloat16()
    assert fp32(torch.exp)(torch.zeros(2).bfloat16(), out=out) is out
    assert out.tolist() == [1.0, 1.0]


def test_autocast_does_not_lower_a_pinned_product() -> None:
    a = torch.full((1, 1), 1 + 2**-12)
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="precision plan"):
        assert fp32(torch.matmul)(a, a).item() == pytest.approx(1 + 2**-11)


@pytest.mark.parametrize("dtype", LOW)
def test_gradients_flow_in_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    x = torch.randn(3, 7).to(dtype).requires_grad_()
    weight = torch.randn(3, 7)
    (fp32(F.softmax)(x, -1).float() * weight).sum().backward()
    exact = x.detach().float().requires_grad_()
    (F.softmax(exact, -1) * weight).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.float(), exact.grad, rtol=2e-2, atol=2e-3)


def test_it_compiles_without_a_graph_break() -> None:
    def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return fp32(F.softmax)(operator.matmul(q, k.transpose(-1, -2)), -1)

    q, k = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 3, 4).bfloat16()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, k), attention(q, k))


@pytest.mark.parametrize("make", [lambda: lambda x: x.exp(), lambda: torch.nn.Softmax(-1)], ids=["lambda", "module"])
def test_other_callables_can_be_pinned_and_compiled(make) -> None:  # type: ignore[no-untyped-def]
    function = make()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return fp32(function)(x)

    x = torch.randn(3, 4).bfloat16()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(forward, backend="aot_eager")(x), forward(x))


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    mean = fp32(torch.mean, keep=True)(fp32(torch.pow, keep=True)(x, 2), dim=-1, keepdim=True)
    return fp32(torch.rsqrt)(fp32(operator.add, keep=True)(mean, 1e-6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_kept_result_goes_into_the_next_pinned_call_in_fp32(dtype: torch.dtype) -> None:
    """Squares of 1000 are over 65504, and so is their mean: only in FP32 from end to end is there a result."""
    x = (torch.randn(4, 64) * 1000).to(dtype).requires_grad_()
    plain = (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt().to(dtype)
    result = rms_norm(x)
    assert result.dtype == dtype
    assert torch.equal(result, plain)
    assert result.isfinite().all()
    assert (result > 0).all()
    ours, theirs = (torch.autograd.grad(value.float().sum(), x)[0] for value in (result, plain))
    assert torch.equal(ours, theirs)


def test_kept_results_compile_in_one_graph() -> None:
    x = (torch.randn(4, 64) * 1000).half()
    torch._dynamo.reset()
    assert torch.equal(torch.compile(rms_norm, backend="aot_eager", fullgraph=True)(x), rms_norm(x))


def test_a_kept_result_beside_another_tensor_takes_the_dtype_of_both() -> None:
    kept = fp32(torch.exp, keep=True)(torch.ones(2).half())
    assert fp32(torch.mul)(kept, torch.ones(2).half()).dtype == torch.float16
    assert fp32(torch.mul)(input=torch.ones(2), other=kept).dtype == torch.float32


def test_a_kept_result_that_reaches_another_function_says_what_to_change() -> None:
    kept = fp32(torch.pow, keep=True)(torch.ones(2).half(), 2)
    with pytest.raises(TypeError, match=r"relu takes the result of fp32\(\.\.\., keep=True\).*remove keep=True"):
        torch.relu(kept)


def test_pinned_looks_up_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return x

    x = torch.ones(2).bfloat16()
    pinned("Block.forward#exp.0", note)(x)
    monkeypatch.setitem(runtime.PINS, "Block.forward#exp.0", "fp32")
    pinned("Block.forward#exp.0", note)(x)
    pinned("Block.forward#exp.1", note)(x)
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    monkeypatch.setitem(runtime.PINS, "Block.forward#exp.1", "keep")
    assert fp32(note)(pinned("Block.forward#exp.1", note)(x)).dtype == torch.bfloat16
    assert seen[3:] == [torch.float32, torch.float32]


def test_pinned_compiles_and_follows_a_changed_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return pinned("f#pow.0", torch.pow)(x, 2) / 300

    x = torch.full((4,), 300.0).half()
    torch._dynamo.reset()
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), forward(x))
    monkeypatch.setitem(runtime.PINS, "f#pow.0", "fp32")
    assert torch.equal(compiled(x), forward(x))


@pytest.mark.parametrize("in_a_dict", [False, True])
def test_a_compiled_loss_is_compiled_once(in_a_dict: bool) -> None:
    """A loss that is compiled anew for each step falls back to eager after eight of them, without a word."""
    compiled = []

    def count(module: torch.fx.GraphModule, _example: object) -> object:
        compiled.append(module)
        return module.forward

    torch._dynamo.reset()

    def loss(output: Any, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output["logits"] if in_a_dict else output, targets)

    function = runtime.loss_in("fp32", compile=True, backend=count)(loss)
    outputs = [torch.randn(4, 5).bfloat16().requires_grad_() for _ in range(4)]  # all alive: no two at one address
    for output in outputs:
        function({"logits": output} if in_a_dict else output, torch.zeros(4, dtype=torch.long)).backward()
    assert len(compiled) == 1
    torch._dynamo.reset()


def test_the_runtime_does_not_import_the_compiler() -> None:
    code = "import sys, amptune.runtime; print('torch._dynamo' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
