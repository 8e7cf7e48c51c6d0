"""What rules look for in the bytes of a file before it is parsed for them."""

from __future__ import annotations

import pytest
from amptune_rules.source import _bytes as look

MODULE = b"class Norm(nn.Module):\n    def forward(self, x):\n"


@pytest.mark.parametrize(
    ("code", "half", "sixteen"),
    [
        (b"x = y.half()", True, True),
        (b"x = y.to(torch.float16)", True, True),
        (b"dtype = torch.bfloat16", False, True),
        (b"if x.dtype == torch.float16: pass", False, False),
        (b"if x.dtype in (torch.float16, torch.bfloat16): pass", False, False),
        (b"if x.dtype in (torch.int8, torch.float16): x = y.to(torch.float16)", True, True),
        (b"if x.dtype is not torch.bfloat16: pass", False, False),
        (b"dtypes = (torch.float16, torch.bfloat16)", True, True),
        (b"with torch.autocast('cuda'): pass", True, True),
        (b"model = load(name, torch_dtype='fp16')", True, True),
        (b"q = rotate_half(q)  # float16", False, False),
        (b"def step(x: HalfTensor, y: BFloat16[Tensor, 'b']): pass", True, True),
        (b"def step(y: BFloat16[Tensor, 'b']): pass", False, True),
    ],
)
def test_a_dtype_that_is_only_compared_makes_nothing(code: bytes, half: bool, sixteen: bool) -> None:
    assert look.makes_half(code) is half
    assert look.makes_sixteen_bits(code) is sixteen


@pytest.mark.parametrize(
    ("body", "concerns"),
    [
        (b"        return x * torch.rsqrt(x.pow(2).mean(-1))", True),
        (b"        x = x.float()\n        return x * torch.rsqrt(x.pow(2).mean(-1))", False),
        (b"        x = x.to(torch.float32)\n        v = (x ** 2).mean(-1)\n        return x * torch.rsqrt(v)", False),
        (b"        return x * torch.rsqrt(x.float().pow(2).mean(-1))", False),
        (b"        x = x.float() if up else x\n        return torch.rsqrt(x.pow(2).mean(-1))", True),
        (b"        if up:\n            x = x.float()\n        return torch.rsqrt(x.pow(2).mean(-1))", True),
        (b"        x = x.float()\n        x = x.half()\n        return torch.rsqrt(x.pow(2).mean(-1))", True),
        (b"        y = x.float()\n        return torch.rsqrt((x * x).mean(-1))", True),
        (b"        return torch.rsqrt((x * y + y).mean(-1))", False),
    ],
)
def test_squares_of_values_that_were_cast_up_are_no_concern(body: bytes, concerns: bool) -> None:
    assert look.squares_before_root(MODULE + body + b"\n") is concerns


@pytest.mark.parametrize(
    ("code", "concerns"),
    [
        (b"x = x.masked_fill(mask, -1e9)", True),
        (b"x = (1.0 - keep) * -1e9", True),
        (b"LOW = -1e9\nx = x + mask * LOW", True),
        (b"x = torch.where(\n    keep,\n    x,\n    -1e9,\n)", True),
        (b"size = bytes * 2**30", False),
        (b"f(vocab=100000, **config)\ny = x * config", False),
        (b"x.masked_fill(mask, low)\nlimit = 1e9", False),
    ],
)
def test_large_numbers_that_reach_no_mask_are_no_concern(code: bytes, concerns: bool) -> None:
    assert look.masks_with_large_number(code) is concerns


@pytest.mark.parametrize(
    ("code", "concerns"),
    [
        (b"y = x / (n + 1e-8)", True),
        (b"y = x / (n + 1E-12)", True),
        (b"y = x / n.clamp(min=1.e-9)", True),
        (b"def f(x, eps=1e-8):\n    return x / (x.norm() + eps)", True),
        (b"norm = LayerNorm(d, eps=1e-12)", False),
        (b"y = z.max()\nlayer = Norm(\n    1e-12)", False),
        (b"y = x / (n + 1e-5)", False),
    ],
)
def test_tiny_numbers_that_guard_nothing_are_no_concern(code: bytes, concerns: bool) -> None:
    assert look.guards_with_tiny_number(code) is concerns
