"""Further cases of kernel_times.py: convolutions of other dimensions, windows and layouts, products of odd shapes, and
ops bound by memory forward and backward, by what autograd runs for them.

A pass ``both`` is forward and backward together: autograd's backward is captured with its forward alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks import device_times

Passes = dict[str, Callable[[], Any]]
Function = Callable[..., Tensor]
aten = torch.ops.aten

CONVOLUTIONS = (  # batch, sides, inputs, outputs, kernel, stride, dilation, groups
    (8, (16384,), 64, 128, (2,), 1, 1, 1), (8, (16384,), 64, 128, (2,), 1, 64, 1), (8, (16384,), 64, 64, (1,), 1, 1, 1),
    (16, (4096,), 128, 128, (3,), 1, 1, 1), (16, (4096,), 128, 128, (3,), 1, 8, 1),
    (16, (4096,), 256, 256, (3,), 1, 4, 1), (16, (2048,), 512, 512, (3,), 1, 1, 1),
    (16, (2048,), 512, 512, (7,), 1, 1, 1), (16, (16384,), 512, 512, (3,), 2, 1, 1),
    (16, (32768,), 32, 32, (15,), 1, 1, 1), (16, (512,), 768, 768, (128,), 1, 1, 16),
    (16, (2048,), 512, 512, (5,), 1, 1, 8), (16, (1024,), 512, 512, (31,), 1, 1, 512),
    (8, (2048,), 1024, 1024, (4,), 1, 1, 1024), (8, (64, 64), 512, 256, (3, 3), 1, 6, 1),
    (8, (64, 64), 2048, 256, (3, 3), 1, 12, 1), (8, (64, 64), 256, 256, (3, 3), 1, 2, 1),
    (8, (64, 64), 2048, 256, (1, 1), 1, 1, 1), (8, (64, 64), 2048, 512, (1, 1), 1, 1, 1),
    (8, (128, 128), 256, 256, (3, 3), 1, 1, 1), (8, (256, 256), 64, 64, (3, 3), 1, 1, 1),
    (16, (64, 64), 128, 256, (4, 4), 2, 1, 1), (16, (64, 64), 128, 128, (5, 5), 1, 1, 1),
    (16, (32, 32), 320, 640, (3, 3), 1, 1, 1), (16, (32, 32), 320, 640, (1, 1), 1, 1, 1),
    (4, (16, 56, 56), 64, 64, (3, 3, 3), 1, 1, 1), (4, (16, 28, 28), 128, 256, (3, 3, 3), 1, 1, 1),
    (2, (64, 64, 64), 32, 32, (3, 3, 3), 1, 1, 1),
)  # fmt: skip
TRANSPOSED = ((8, (64, 64), 256, 128, (2, 2), 2, 1, 1), (8, (64, 64), 256, 128, (4, 4), 2, 1, 1),
              (16, (2048,), 256, 128, (16,), 8, 1, 1))  # fmt: skip
GEMMS = (  # m, n, k, batch
    (262144, 64, 64, 1), (262144, 256, 256, 1), (1048576, 32, 32, 1), (65536, 128, 512, 1), (65536, 4096, 512, 1),
    (8192, 8192, 2048, 1), (16384, 4000, 1001, 1), (16384, 50257, 768, 1), (16384, 30522, 768, 1), (4096, 514, 514, 1),
    (4096, 1024, 100, 1), (256, 1024, 1024, 1), (32, 4096, 4096, 1), (4096, 1, 1024, 1), (64, 64, 64, 2048),
    (16, 16, 64, 8192), (256, 256, 256, 128), (1024, 1024, 40, 128), (2048, 2048, 128, 32), (197, 197, 64, 768),
)  # fmt: skip
ATTENTIONS = (  # batch, heads, queries, keys, head size, kind
    (16, 8, 1024, 1024, 40, "plain"), (16, 8, 1024, 1024, 80, "plain"), (8, 16, 1024, 1024, 96, "causal"),
    (4, 8, 1024, 1024, 256, "causal"), (32, 12, 77, 77, 64, "causal"), (256, 8, 64, 64, 32, "plain"),
)  # fmt: skip
SIZES = (2**25, 2**22)
"""Elements of the tensors of ops that are bound by memory."""
BATCH_NORMS = (16, 64, 256, 1024)
"""Channels."""


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal random numbers on the device; zeros draw less power."""
    return torch.randn(*shape, device=device_times.DEVICE).to(dtype)


def convolution(
    dtype: torch.dtype, batch: int, sides: tuple[int, ...], inputs: int, outputs: int, kernel: tuple[int, ...],
    stride: int, dilation: int, groups: int, *, transposed: bool = False, channels_last: bool = False,
) -> Passes:  # fmt: skip
    """The three passes of a convolution over one dimension or more."""
    dims = len(sides)
    padding = [0 if size == stride else dilation * (size - 1) // 2 for size in kernel]
    x = random(batch, inputs, *sides, dtype=dtype)
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    w = random(*shape, *kernel, dtype=dtype)
    if channels_last:
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
        x, w = x.to(memory_format=layout), w.to(memory_format=layout)
    return three_passes(x, w, [stride] * dims, padding, [dilation] * dims, transposed, [0] * dims, groups)


def three_passes(x: Tensor, w: Tensor, *numbers: Any) -> Passes:
    """Forward and both gradients of a convolution; ``numbers`` as torch's own convolution takes them after the bias."""
    g = torch.randn_like(aten.convolution(x, w, None, *numbers))

    def backward(*mask: bool) -> Callable[[], Any]:
        return lambda: aten.convolution_backward(g, x, w, None, *numbers, [*mask, False])

    return {
        "forward": lambda: aten.convolution(x, w, None, *numbers),
        "input": backward(True, False),
        "weight": backward(False, True),
    }


def differentiated(function: Function, *inputs: Tensor) -> Passes:
    """Forward, and forward with the gradients of all inputs in floating point."""
    trained = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
    gradient = torch.randn_like(function(*inputs))

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    return {"forward": forward, "both": lambda: torch.autograd.grad(function(*inputs), trained, gradient)}


def memory_ops(size: int, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Passes]]]:
    """Name of an op and what builds its passes, on tensors of ``size`` elements."""
    rows, width = size // 1024, 1024
    given = {
        "rows": (rows, width), "images": (size // 65536, 64, 32, 32), "tokens": (size // 2**18, 512, 512),
        "narrow": (size // 64, 64), "heads": (size // 2**18, 256, 16, 64),
    }  # fmt: skip
    for group in (_elements, _reductions, _rearranged, _windows, _looked_up, _losses, _norms):
        for name, (kind, function, *others) in group(rows, width).items():

            def build(kind: str = kind, function: Function = function, others: list[Any] = others) -> Passes:
                x = random(*given[kind], dtype=dtype)
                return differentiated(function, x, *(make(x) for make in others))

            yield name, build


def _same(x: Tensor) -> Tensor:
    return torch.rand_like(x)


def _mask(x: Tensor) -> Tensor:
    return torch.rand_like(x, dtype=torch.float32) < 0.5


def _row(x: Tensor) -> Tensor:
    return torch.rand_like(x[0])


def _column(x: Tensor) -> Tensor:
    return torch.rand_like(x[:, :1])


def _indices(count: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.randint(0, count, (len(x),), device=x.device)


Ops = dict[str, tuple[Any, ...]]


def _elements(rows: int, width: int) -> Ops:
    unary: dict[str, Function] = {
        "exp": torch.exp, "sin": torch.sin, "square": torch.square, "pow_3": lambda x: x**3, "sigmoid": torch.sigmoid,
        "tanh": torch.tanh, "softplus": F.softplus, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "leaky_relu": F.leaky_relu, "hardswish": F.hardswish, "clamp": lambda x: x.clamp(-1, 1), "abs": torch.abs,
        "clone": torch.clone, "glu": F.glu, "halves": lambda x: torch.mul(*x.chunk(2, -1)),
        "dropout": lambda x: F.dropout(x, 0.1),
    }  # fmt: skip
    return {name: ("rows", function) for name, function in unary.items()} | {
        "mul": ("rows", torch.mul, _same), "div": ("rows", torch.div, lambda x: _same(x) + 1),
        "mul_row": ("rows", torch.mul, _row), "add_row": ("rows", torch.add, _row),
        "mul_column": ("rows", torch.mul, _column), "sub_column": ("rows", torch.sub, _column),
        "where": ("rows", lambda x, y, m: torch.where(m, x, y), _same, _mask),
        "masked_fill": ("rows", lambda x, m: x.masked_fill(m, 0.0), _mask),
        "maximum": ("rows", torch.maximum, _same), "mul_image": ("images", lambda x, s: x * s, _squeezed),
        "rms_by_hand": ("rows", lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
        "rotate": ("heads", lambda x: torch.cat((-x[..., 32:], x[..., :32]), -1)),
    }  # fmt: skip


def _squeezed(x: Tensor) -> Tensor:
    return torch.rand_like(x[:, :, :1, :1])


def _reductions(rows: int, width: int) -> Ops:
    table: dict[str, Function] = {
        "sum_last": lambda x: x.sum(-1), "sum_first": lambda x: x.sum(0), "mean_last": lambda x: x.mean(-1),
        "var_last": lambda x: x.var(-1), "norm_last": lambda x: x.norm(dim=-1), "amax_last": lambda x: x.amax(-1),
        "max_last": lambda x: x.max(-1)[0], "logsumexp_last": lambda x: x.logsumexp(-1),
        "normalize": lambda x: F.normalize(x, dim=-1), "cumsum_last": lambda x: x.cumsum(-1),
        "cumsum_first": lambda x: x.cumsum(0), "topk": lambda x: x.topk(8)[0], "sort": lambda x: x.sort(-1)[0],
    }  # fmt: skip
    return {name: ("rows", function) for name, function in table.items()} | {
        "mean_tokens": ("tokens", lambda x: x.mean(1)), "max_tokens": ("tokens", lambda x: x.amax(1)),
        "softmax_tokens": ("tokens", lambda x: x.softmax(1)), "softmax_narrow": ("narrow", lambda x: x.softmax(-1)),
        "sum_narrow": ("narrow", lambda x: x.sum(-1)), "mean_image": ("images", lambda x: x.mean((2, 3))),
        "cumsum_tokens": ("tokens", lambda x: x.cumsum(1)),
    }  # fmt: skip


def _rearranged(rows: int, width: int) -> Ops:
    return {
        "cat_last": ("rows", lambda x, y: torch.cat((x, y), -1), _same),
        "cat_first": ("rows", lambda x, y: torch.cat((x, y)), _same),
        "cat_images": ("images", lambda x, y: torch.cat((x, y), 1), _same),
        "stack_last": ("rows", lambda x, y: torch.stack((x, y), -1), _same),
        "split_3": ("narrow", lambda x: sum(part.contiguous() for part in x[:, :48].chunk(3, -1))),
        "first_half": ("rows", lambda x: x[:, :512] * 2), "every_other": ("rows", lambda x: x[:, ::2] * 2),
        "swap_heads": ("heads", lambda x: x.transpose(1, 2).contiguous()),
        "swap_tokens": ("tokens", lambda x: x.transpose(1, 2).contiguous()),
        "to_last": ("images", lambda x: x.permute(0, 2, 3, 1).contiguous()),
        "repeat": ("rows", lambda x: x[:, None].expand(-1, 2, -1).reshape(-1, 1024)),
        "repeat_interleave": ("rows", lambda x: x.repeat_interleave(2, 0)),
        "flip": ("rows", lambda x: x.flip(-1)), "roll": ("tokens", lambda x: x.roll(1, 1)),
        "pad_image": ("images", lambda x: F.pad(x, (1, 1, 1, 1))), "pad_last": ("rows", lambda x: F.pad(x, (0, 8))),
        "reflect": ("images", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
        "pixel_shuffle": ("images", lambda x: F.pixel_shuffle(x, 2)),
    }  # fmt: skip


def _windows(rows: int, width: int) -> Ops:
    table: dict[str, Function] = {
        "nearest_2": lambda x: F.interpolate(x, scale_factor=2),
        "bilinear_2": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "bilinear_4": lambda x: F.interpolate(x, scale_factor=4, mode="bilinear"),
        "avg_pool_2": lambda x: F.avg_pool2d(x, 2), "max_pool_2": lambda x: F.max_pool2d(x, 2),
        "max_pool_3": lambda x: F.max_pool2d(x, 3, 2, 1), "adaptive_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
        "unfold_3": lambda x: F.unfold(x, 3, padding=1),
    }  # fmt: skip
    last = {f"{name}_last": _in_last(table[name]) for name in ("bilinear_2", "avg_pool_2", "max_pool_3", "nearest_2")}
    return {name: ("images", function) for name, function in (table | last).items()} | {
        "grid_sample": ("images", lambda x, g: F.grid_sample(x, g, align_corners=False), _grid),
        "max_pool_1d": ("tokens", lambda x: F.max_pool1d(x, 2)),
    }


def _in_last(function: Function) -> Function:
    return lambda x: function(x.contiguous(memory_format=torch.channels_last))


def _grid(x: Tensor) -> Tensor:
    return torch.rand(x.shape[0], 32, 32, 2, device=x.device, dtype=x.dtype) * 2 - 1


def _looked_up(rows: int, width: int) -> Ops:
    def into(x: Tensor, ids: Tensor) -> Tensor:
        return torch.zeros(4096, x.shape[1], device=x.device, dtype=x.dtype).index_add(0, ids, x)

    def scattered(x: Tensor, ids: Tensor) -> Tensor:
        zeros = torch.zeros(4096, x.shape[1], device=x.device, dtype=x.dtype)
        return zeros.scatter_add(0, ids[:, None].expand_as(x), x)

    return {
        "index_select": ("rows", lambda x, ids: x.index_select(0, ids), _indices(rows)),
        "index": ("rows", lambda x, ids: x[ids], _indices(rows)),
        "index_narrow": ("narrow", lambda x, ids: x[ids], _indices(rows)),
        "embedding_100": ("rows", lambda x, ids: F.embedding(ids, x[:100]), _indices(100)),
        "embedding_4096": ("rows", lambda x, ids: F.embedding(ids, x[:4096]), _indices(min(rows, 4096))),
        "embedding_narrow": ("narrow", lambda x, ids: F.embedding(ids, x), _indices(rows)),
        "gather_last": ("rows", lambda x, ids: x.gather(1, ids), _places),
        "index_add": ("narrow", into, _indices(4096)), "scatter_add": ("narrow", scattered, _indices(4096)),
    }  # fmt: skip


def _places(x: Tensor) -> Tensor:
    return torch.randint(0, x.shape[1], tuple(x.shape), device=x.device)


def _losses(rows: int, width: int) -> Ops:
    def over(classes: int) -> tuple[Any, ...]:
        kind = "narrow" if classes <= 64 else "rows"
        return kind, lambda x, y: F.cross_entropy(x[:, :classes], y), _indices(classes)

    def pixels(x: Tensor) -> Tensor:
        return torch.randint(0, 64, (x.shape[0], *x.shape[2:]), device=x.device)

    return {
        "cross_entropy_64": over(64), "cross_entropy_1000": over(1000),
        "cross_entropy_pixels": ("images", F.cross_entropy, pixels),
        "mse_loss": ("rows", F.mse_loss, _same), "smooth_l1": ("rows", F.smooth_l1_loss, _same),
        "bce_logits": ("rows", F.binary_cross_entropy_with_logits, _same),
        "kl_div": ("rows", lambda x, y: F.kl_div(x.log_softmax(-1), y, reduction="batchmean"), _same),
    }  # fmt: skip


def _norms(rows: int, width: int) -> Ops:
    def layer(size: int) -> tuple[Any, ...]:
        return (
            "rows",
            lambda x, w: F.layer_norm(x.reshape(-1, size), (size,), w, w),
            lambda x: torch.rand_like(x.flatten()[:size]),
        )

    def grouped(x: Tensor) -> Tensor:
        return F.group_norm(x, 32)

    found: Ops = {f"layer_norm_{size}": layer(size) for size in (64, 256, 1024, 4096)}
    found |= {"rms_norm": ("rows", lambda x, w: F.rms_norm(x, (1024,), w), _row)}
    found |= {"group_norm": ("images", grouped), "group_norm_last": ("images", _in_last(grouped))}
    found |= {"instance_norm": ("images", F.instance_norm)}
    for channels in BATCH_NORMS:
        for suffix, layout in (("", torch.contiguous_format), ("_last", torch.channels_last)):
            found[f"batch_norm_{channels}{suffix}"] = "rows", _batch_norm(channels, layout), _ones(channels)
    return found


def _ones(channels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.ones(channels, device=x.device)


def _batch_norm(channels: int, layout: torch.memory_format) -> Function:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        images = x.reshape(-1, channels, 32, 32) if layout is torch.contiguous_format else _viewed(x, channels)
        mean, var = torch.zeros_like(weight, requires_grad=False), torch.ones_like(weight, requires_grad=False)
        return F.batch_norm(images, mean, var, weight, weight, training=True)

    return run


def _viewed(x: Tensor, channels: int) -> Tensor:
    """The same memory as images in channels_last."""
    return x.reshape(-1, 32, 32, channels).permute(0, 3, 1, 2)
