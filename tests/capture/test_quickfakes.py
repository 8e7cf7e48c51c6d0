"""Ops on fake tensors that are answered for, against what torch says of the same."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import functional as F

from amptune.capture.fakes import new_fake_mode
from amptune.capture.quickfakes import QuickFakes
from amptune.capture.target import tensors_in

Op = Callable[[torch.Tensor, torch.Tensor], Any]

OPS: dict[str, Op] = {
    "add": lambda x, w: x + w[0],
    "integer": lambda x, w: (x > 0).sum() * 2,
    "float": lambda x, w: (x > 0).sum() * 2.0,
    "type promotion": lambda x, w: (x > 0) + x.half(),
    "linear": lambda x, w: F.linear(x, w, w[0]),
    "layer norm": lambda x, w: F.layer_norm(x, (8,), w[0]),
    "softmax": lambda x, w: x.softmax(-1),
    "cat": lambda x, w: torch.cat([x, x[:1]]),
    "stack": lambda x, w: torch.stack([x[0], x[1]], 1),
    "sort": lambda x, w: x.sort(-1),
    "max": lambda x, w: x.max(1),
    "slice": lambda x, w: x[1:3, ::2],
    "select": lambda x, w: x[:, 2],
    "later select": lambda x, w: x[2:][:, 2],
    "chunk": lambda x, w: x.chunk(2, -1),
    "unbind": lambda x, w: x.unbind(0),
    "unsafe split": lambda x, w: x.unsafe_split(2, 1),
    "transpose": lambda x, w: x.t().contiguous(),
    "contiguous": lambda x, w: x.contiguous(),
    "reshape": lambda x, w: x.t().reshape(-1),
    "einsum": lambda x, w: torch.einsum("ij,kj->ik", x, w),
    "batched": lambda x, w: x[None] @ w.t()[None],
    "convolution": lambda x, w: F.conv1d(x[None], x[:, :4, None]),
    "attention": lambda x, w: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    "dropout": lambda x, w: F.dropout(x, 0.5),
    "embedding": lambda x, w: F.embedding(torch.tensor([1, 2]), x),
    "cross entropy": lambda x, w: F.cross_entropy(x, torch.tensor([0, 1, 2, 3])),
    "conjugate": lambda x, w: torch.complex(x, x).conj() * 2,
    "like": lambda x, w: (torch.zeros_like(x), x.new_zeros(3), torch.empty_like(x.t())),
    "double": lambda x, w: x.double().to(torch.bfloat16),
    "expand": lambda x, w: x[:, None].expand(4, 3, 8),
    "as strided": lambda x, w: x[1:].as_strided((2, 2), (8, 1)),
    "where": lambda x, w: torch.where(x > 0, x, 0.0),
    "clone": lambda x, w: x.t().clone(memory_format=torch.contiguous_format),
    "lstm cell": lambda x, w: torch.lstm_cell(x, (x[:, :2], x[:, :2]), w, w[:, :2]),
}  # fmt: skip


def _tensors(mode: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with mode:
        return torch.randn(4, 8, requires_grad=True), torch.nn.Parameter(torch.randn(8, 8))


def _seen(result: Any) -> list[tuple[Any, ...]]:
    return [
        (type(each), each.shape, each.stride(), each.storage_offset(), each.dtype, each.device, each.requires_grad,
         type(each.grad_fn), each._is_view(), each.is_conj(), each.untyped_storage().nbytes())
        for each in tensors_in(result)
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_answer_is_that_of_torch(name: str) -> None:
    mode = new_fake_mode()
    given = _tensors(mode)
    told = _seen(OPS[name](*given))
    with QuickFakes(mode).watch():
        assert [_seen(OPS[name](*given)) for _ in range(3)] == [told] * 3


STEPS: tuple[Callable[[torch.Tensor, random.Random], Any], ...] = (
    lambda t, r: t[r.randrange(t.shape[0])].expand_as(t),
    lambda t, r: t[:, r.randrange(3) :].narrow(1, 0, 1),
    lambda t, r: t.transpose(0, 1),
    lambda t, r: t.transpose(0, 1).contiguous(),
    lambda t, r: t.flip(r.randrange(2)),
    lambda t, r: t + r.choice([1, 1.5, True, 1j]),
    lambda t, r: t.to(r.choice([torch.half, torch.float64, t.dtype])),
    lambda t, r: t.clamp(min=r.choice([0, -0.5])) if not t.is_complex() else torch.view_as_real(t)[r.randrange(2)],
    lambda t, r: t.clone().mul_(r.choice([2, 0.5])),
    lambda t, r: t.zero_(),
    lambda t, r: t[:1].fill_(r.randrange(3)),
    lambda t, r: t.sum(r.choice([0, 1, -1]), keepdim=r.random() < 0.8),
    lambda t, r: t.split(r.randrange(1, 4), r.randrange(2)),
    lambda t, r: t.unbind(r.randrange(2)),
    lambda t, r: torch.cat([t, t[:1]], 0),
    lambda t, r: torch.empty_like(t, memory_format=r.choice([torch.preserve_format, torch.contiguous_format])),
    lambda t, r: t.reshape(-1).view(t.shape[0], -1),
    lambda t, r: t[: r.randrange(3)].max(0) if not t.is_complex() else t.conj(),
)  # fmt: skip


def _random_program(mode: FakeTensorMode, seed: int) -> list[Any]:
    """What each step of a program gives, or the kind of error that it ends with, and which results share memory."""
    draw, told = random.Random(seed), list[Any]()
    with mode:
        pool = [torch.zeros(4, 6), torch.zeros(6, 4).t(), torch.zeros(5, 4, 6)[draw.randrange(5)]]
    pool.append(torch.complex(pool[0], pool[0]))
    for _ in range(30):
        operand, step = draw.choice(pool), draw.choice(STEPS)
        try:
            found = [each for each in tensors_in(step(operand, draw)) if each.dim() == 2]
        except (RuntimeError, IndexError) as error:
            told.append(type(error))
            continue
        pool += found
        memory = [each.untyped_storage()._cdata for each in pool]
        told.append((_seen(found), [each._version for each in pool], [memory.index(each) for each in memory]))
    return told


def test_random_programs_give_what_torch_gives() -> None:
    mode = new_fake_mode()
    told = [_random_program(mode, seed) for seed in range(40)]
    quick = QuickFakes(mode)
    with quick.watch():
        assert [_random_program(mode, seed) for seed in range(40)] == told
    assert quick.repeated > quick.learnt > 100


def test_an_op_is_asked_of_torch_once() -> None:
    mode = new_fake_mode()
    x, w = _tensors(mode)
    quick = QuickFakes(mode)
    with quick.watch():
        for step in range(20):
            x = (x @ w).tanh() * (step / 7)
    assert (quick.learnt, quick.repeated) == (4, 76)  # tanh keeps its result for the backward, which is an op too


def test_view_shares_memory_and_a_write_into_it_reaches_the_whole() -> None:
    mode = new_fake_mode()
    x, w = _tensors(mode)
    with mode:
        whole = torch.zeros(5, 4, 8)
    with QuickFakes(mode).watch():
        for step in range(5):
            before = whole._version
            whole[step] = x @ w
            view = whole[step]
            assert view._base is whole
            assert view.storage_offset() == step * 32
            assert whole._version == before + 1
            assert whole.requires_grad


VIEWS_IN_OTHER_NUMBERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "real from complex": lambda x: torch.view_as_real(x[1]),
    "imaginary parts": lambda x: x[1].imag,
    "complex from real": lambda x: torch.view_as_complex(torch.view_as_real(x)[1]),
    "other bits": lambda x: x[1].view(torch.int32),
}


@pytest.mark.parametrize("name", VIEWS_IN_OTHER_NUMBERS)
def test_view_in_other_numbers_begins_where_that_of_torch_does(name: str) -> None:
    mode = new_fake_mode()
    with mode:
        whole = torch.zeros(6, 4, 8, dtype=torch.complex64)
    told = [_seen(VIEWS_IN_OTHER_NUMBERS[name](whole[step:])) for step in range(5)]
    with QuickFakes(mode).watch():
        assert [_seen(VIEWS_IN_OTHER_NUMBERS[name](whole[step:])) for step in range(5)] == told


def test_symbolic_sizes_are_left_to_torch() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    x = mode.from_tensor(torch.randn(4, 8))
    quick = QuickFakes(mode)
    with quick.watch():
        assert [(x + 1).shape for _ in range(2)] == [x.shape] * 2
    assert quick.learnt == 0


def test_gradient_can_be_taken_through_what_was_repeated() -> None:
    mode = new_fake_mode()
    x, w = _tensors(mode)
    with QuickFakes(mode).watch():
        for _ in range(3):
            (grad,) = torch.autograd.grad((x @ w).tanh().sum(), x, create_graph=True)
            assert isinstance(grad, FakeTensor)
            assert grad.shape == x.shape
            assert grad.requires_grad


def test_result_follows_the_dtype_that_is_the_default() -> None:
    mode = new_fake_mode()
    with mode:
        mask = torch.ones(3, dtype=torch.bool)
    with QuickFakes(mode).watch():
        assert (mask * 1.0).dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            assert (mask * 1.0).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def test_data_that_depends_on_values_is_left_to_torch() -> None:
    mode = new_fake_mode()
    x, _ = _tensors(mode)
    with QuickFakes(mode).watch():
        for _ in range(2):
            with pytest.raises(Exception, match=r"nonzero|DynamicOutputShape"):
                x[x > 0]
            with pytest.raises(Exception, match=r"item|DataDependent|_local_scalar"):
                float(x[0, 0])


def test_shape_that_does_not_fit_is_refused_each_time() -> None:
    mode = new_fake_mode()
    x, w = _tensors(mode)
    with QuickFakes(mode).watch():
        for _ in range(3):
            with pytest.raises(RuntimeError):
                w @ x


def test_nothing_is_left_behind() -> None:
    mode = new_fake_mode()
    before = vars(FakeTensor)["__torch_dispatch__"]
    with pytest.raises(ValueError, match="stop"), QuickFakes(mode).watch():
        raise ValueError("stop")
    assert vars(FakeTensor)["__torch_dispatch__"] is before
