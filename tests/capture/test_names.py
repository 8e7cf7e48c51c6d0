"""Every spelling of an op maps to the one name of the table."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from amptune.capture.aliases import OP_OF_ALIAS, OP_OF_PREFIX
from amptune.capture.names import op_name, op_of_spelling, written_by
from amptune.core.ops import OPS

X = torch.ones(2, 2)
ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "args", "op"),
    [
        (torch.softmax, (X, -1), "softmax"),
        (F.softmax, (X, -1), "softmax"),
        (torch.Tensor.softmax, (X, -1), "softmax"),
        (ATEN.softmax.int, (X, -1), "softmax"),
        (ATEN._softmax.default, (X, -1, False), "softmax"),
        (torch.Tensor.__matmul__, (X, X), "matmul"),
        (torch.Tensor.__rsub__, (X, 1), "sub"),
        (torch.Tensor.__iadd__, (X, X), "add"),
        (torch.Tensor.mul_, (X, X), "mul"),
        (operator.getitem, (X, 0), "slice"),
        (torch.Tensor.__getitem__, (X, (slice(None), torch.tensor([0]))), "index"),
        (torch.Tensor.__setitem__, (X, 0, 1), "copy"),
        (torch.Tensor.__setitem__, (X, X > 0, 1), "index_put"),
        (F.cross_entropy, (X, X), "cross_entropy"),
        (ATEN.cross_entropy_loss.default, (X, X), "cross_entropy"),
        (ATEN.nll_loss_nd.default, (X, X), "nll_loss"),
        (F.scaled_dot_product_attention, (X, X, X), "scaled_dot_product_attention"),
        (ATEN._scaled_dot_product_flash_attention_for_cpu.default, (X, X, X), "scaled_dot_product_attention"),
        (F.multi_head_attention_forward, (X, X, X), "multi_head_attention"),
        (ATEN.upsample_bilinear2d.default, (X,), "interpolate"),
        (ATEN.native_layer_norm.default, (X,), "layer_norm"),
        (ATEN.rms_norm.default, (X,), "rms_norm"),
        (ATEN.convolution.default, (X, X, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1), "conv2d"),
        (ATEN.convolution.default, (X, X, None, [1], [0], [1], True, [0], 1), "conv_transpose1d"),
        (torch.fft.rfft, (X,), "fft"),
        (torch.linalg.inv, (X,), "inverse"),
        (torch.special.expit, (X,), "sigmoid"),
        (torch.rnn_tanh, (X,), "rnn"),
        (torch.Tensor.float, (X,), "float"),
        (torch.Tensor.cuda, (X,), "to"),
        (torch.Tensor.T.__get__, (X,), "permute"),  # type: ignore[attr-defined]
        (torch._C._nn.linear, (X, X), "linear"),
        (torch.concat, ([X, X],), "cat"),
        (torch.clip, (X, 0), "clamp"),
    ],
)
def test_spellings(function: Any, args: tuple[Any, ...], op: str) -> None:
    assert op_name(function, args) == op


def test_aliases_lead_into_the_table() -> None:
    assert set(OP_OF_ALIAS.values()) | set(OP_OF_PREFIX.values()) <= OPS.keys()


def test_every_op_of_the_table_is_its_own_name() -> None:
    assert [name for name in OPS if op_of_spelling(name) != name] == []


def test_unknown_names_stay_as_they_are() -> None:
    assert op_of_spelling("my_kernel") == "my_kernel"


def test_most_functions_of_torch_are_known() -> None:
    functions = torch.overrides.get_testing_overrides()
    names = {getattr(function, "__name__", "") for function in functions}
    public = {name for name in names if name and not name.startswith("_") and not name.startswith("is_")}
    unknown = {name for name in public if op_of_spelling(name) not in OPS}
    assert len(unknown) / len(public) < 0.35, sorted(unknown)


@pytest.mark.parametrize(
    ("function", "kwargs", "writes"),
    [
        (torch.Tensor.add_, {}, True),
        (torch.Tensor.__iadd__, {}, True),
        (torch.Tensor.__setitem__, {}, True),
        (torch.Tensor.data.__set__, {}, True),  # type: ignore[attr-defined]
        (F.relu, {"inplace": True}, True),
        (F.relu, {}, False),
        (torch.Tensor.add, {}, False),
        (torch.Tensor.__invert__, {}, False),
    ],
)
def test_which_calls_write(function: Any, kwargs: dict[str, Any], writes: bool) -> None:
    assert [id(each) for each in written_by(function, (X, X), kwargs)] == [id(X)] * writes


def test_out_is_what_is_written() -> None:
    out = torch.empty(2, 2)
    assert [id(each) for each in written_by(torch.add, (X, X), {"out": out})] == [id(out)]


def test_several_are_written() -> None:
    first, second = torch.empty(2), torch.empty(2).long()
    both = [id(first), id(second)]
    assert [id(each) for each in written_by(torch.max, (X, 0), {"out": (first, second)})] == both
    assert [id(each) for each in written_by(torch._foreach_mul_, ([first, second], 2.0), {})] == both
