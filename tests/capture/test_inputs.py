from __future__ import annotations

import pytest
import torch

from amptune.capture.inputs import make_inputs, parse_input, parse_inputs
from amptune.errors import TargetError


@pytest.mark.parametrize(
    ("text", "shape", "dtype", "high", "name"),
    [
        ("16x1024:int64:50257", (16, 1024), torch.int64, 50257, ""),
        ("8x3x32x32", (8, 3, 32, 32), torch.float32, 0, ""),
        ("mask=4x5:bool", (4, 5), torch.bool, 0, "mask"),
        ("scalar:float16", (), torch.float16, 0, ""),
        ("7", (7,), torch.float32, 0, ""),
        ("2x3:complex64", (2, 3), torch.complex64, 0, ""),
    ],
)
def test_descriptions_are_read(text: str, shape: tuple[int, ...], dtype: torch.dtype, high: int, name: str) -> None:
    spec = parse_input(text)
    assert (spec.shape, spec.dtype, spec.high, spec.name) == (shape, dtype, high, name)
    tensor = spec.make(torch.Generator().manual_seed(0))
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    assert parse_input(str(spec)) == spec


def test_integers_stay_under_their_bound() -> None:
    batch = make_inputs([parse_input("1000:int64:5")])
    assert (int(batch.min()), int(batch.max())) == (0, 4)
    assert int(make_inputs([parse_input("1000:int32")]).max()) == 1


def test_a_batch_is_the_same_every_time() -> None:
    specs = [parse_input("4x4"), parse_input("4:int64:9")]
    first, second = make_inputs(specs), make_inputs(specs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_is_a_tensor_several_a_tuple_and_named_ones_a_dict() -> None:
    assert isinstance(make_inputs([parse_input("2")]), torch.Tensor)
    assert isinstance(make_inputs([parse_input("2"), parse_input("3")]), tuple)
    assert list(make_inputs([parse_input("x=2")])) == ["x"]


def test_several_without_a_name_take_the_names_of_forwards_parameters() -> None:
    specs = parse_inputs(("2x4", "2:int64"), ("x", "lengths", "mask"))
    assert [spec.name for spec in specs] == ["x", "lengths"]


@pytest.mark.parametrize("text", ["", "2x", "x2", "2x-1", "2:flot32", "a b=2", "2:int64:x", "2x3:"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(TargetError, match="--input"):
        parse_input(text)


def test_names_are_for_all_or_none() -> None:
    with pytest.raises(TargetError, match="some --input have a name"):
        parse_inputs(("x=2", "3"))


def test_more_inputs_than_parameters_are_refused() -> None:
    with pytest.raises(TargetError, match="3 --input, but forward takes 2: x, y"):
        parse_inputs(("2", "3", "4"), ("x", "y"))
