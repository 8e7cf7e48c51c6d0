from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amptune.core.formats import Format

TORCH = {f: getattr(torch, f.torch_name) for f in Format if f is not Format.TF32}


@pytest.mark.parametrize("number_format", TORCH, ids=str)
def test_ranges_are_torchs(number_format: Format) -> None:
    info = torch.finfo(TORCH[number_format])
    assert number_format.max == info.max
    assert number_format.smallest_normal == info.tiny
    assert number_format.epsilon == info.eps
    assert number_format.smallest_subnormal == info.smallest_normal * info.eps
    assert number_format.bits == info.bits


@pytest.mark.parametrize("number_format", [Format.BF16, Format.FP16], ids=str)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_rounding_is_torchs(number_format: Format, value: float) -> None:
    expected = torch.tensor(value, dtype=torch.float64).to(TORCH[number_format]).double().item()
    # torch rounds float64 to bf16 by way of float32, which is exact for these inputs.
    assert number_format.round(value) == expected


def test_facts_that_rules_quote() -> None:
    assert Format.FP16.round(1e-8) == 0
    assert Format.FP16.round(65519) == 65504
    assert Format.FP16.round(65520) == math.inf
    assert Format.BF16.round(257) == 256
    assert math.isnan(Format.FP8_E4M3.round(500))
    assert Format.FP8_E5M2.round(70000) == math.inf
    assert (Format.BF16.largest_exact_integer, Format.FP16.largest_exact_integer) == (256, 2048)
    assert (Format.BF16.spacing_at(300.0), Format.FP16.spacing_at(-1.5)) == (2.0, 2.0**-10)


@pytest.mark.parametrize("text", ["bf16", "bfloat16", "torch.bfloat16", "BF16"])
def test_names(text: str) -> None:
    assert Format.parse(text) is Format.BF16


def test_torchs_float32_is_fp32_not_tf32() -> None:
    assert Format.parse("float32") is Format.FP32
    assert Format.parse("half") is Format.FP16


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'int8'; known: fp32, tf32, bf16"):
        Format.parse("int8")
