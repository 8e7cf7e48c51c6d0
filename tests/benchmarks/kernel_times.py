"""Times single kernels over shapes, layouts and formats on the GPU at hand, for the constants of the roofline.

    PYTHONPATH=.:rules python tests/benchmarks/kernel_times.py --out DIR [--further]

No model is run: shapes are those that layers have in general, from small to large. Passes of a product are timed one by
one, through the ops that autograd calls. Writes kernels_<gpu>.json: for each case its kind, arguments and format, and
microseconds of each pass. With --further those of kernel_cases.py alone, to kernels_further_<gpu>.json: with the bytes
that each pass of a convolution takes at its peak, its result included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amptune.core.files import write_atomic
from tests.benchmarks import device_times, kernel_cases
from tests.benchmarks.kernel_cases import Passes, random
from tests.benchmarks.step_times import tf32

aten = torch.ops.aten
FORMATS = {"fp32": (torch.float32, False), "tf32": (torch.float32, True), "bf16": (torch.bfloat16, False),
           "fp16": (torch.float16, False)}  # fmt: skip
Case = tuple[str, dict[str, Any], str, Callable[[], Passes]]

GEMMS = (  # m, n, k, batch
    (4096, 4096, 4096, 1), (16384, 3072, 768, 1), (16384, 768, 3072, 1), (16384, 768, 768, 1), (16384, 512, 512, 1),
    (8192, 2048, 512, 1), (8192, 1024, 4096, 1), (2048, 1024, 1024, 1), (512, 2048, 2048, 1), (128, 4096, 1024, 1),
    (64, 1000, 2048, 1), (100000, 384, 96, 1), (100000, 96, 384, 1), (25000, 768, 192, 1), (4096, 32768, 768, 1),
    (512, 512, 64, 256), (512, 64, 512, 256), (64, 64, 32, 4096), (1024, 128, 1024, 64),
)  # fmt: skip
CONVOLUTIONS = (  # batch, side, inputs, outputs, kernel, stride, groups
    (64, 224, 3, 64, 7, 2, 1), (64, 224, 3, 32, 3, 2, 1), (64, 224, 3, 768, 16, 16, 1), (64, 56, 64, 64, 3, 1, 1),
    (64, 56, 64, 256, 1, 1, 1), (64, 56, 256, 128, 1, 1, 1), (64, 28, 128, 128, 3, 1, 1), (64, 28, 512, 256, 1, 1, 1),
    (64, 14, 256, 256, 3, 1, 1), (64, 14, 1024, 256, 1, 1, 1), (64, 7, 512, 512, 3, 1, 1), (64, 56, 256, 512, 1, 2, 1),
    (16, 64, 128, 128, 3, 1, 1), (16, 32, 256, 256, 3, 1, 1), (16, 16, 512, 512, 3, 1, 1), (16, 64, 3, 128, 3, 1, 1),
    (16, 64, 128, 3, 3, 1, 1), (64, 28, 256, 256, 3, 1, 32), (64, 14, 512, 512, 3, 1, 32),
    (64, 112, 32, 32, 3, 1, 32), (64, 56, 144, 144, 5, 2, 144), (64, 14, 480, 480, 3, 1, 480),
    (64, 14, 672, 672, 5, 1, 672), (64, 56, 96, 96, 7, 1, 96), (64, 28, 192, 192, 7, 1, 192),
    (64, 7, 768, 768, 7, 1, 768),
)  # fmt: skip
ATTENTIONS = (  # batch, heads, queries, keys, head size, kind
    (16, 12, 1024, 1024, 64, "causal"), (32, 12, 512, 512, 64, "plain"), (64, 12, 197, 197, 64, "plain"),
    (4, 16, 2048, 2048, 128, "causal"), (32, 8, 1024, 1024, 32, "plain"), (16, 8, 1500, 1500, 64, "plain"),
    (32, 8, 128, 512, 64, "plain"), (32, 8, 128, 128, 64, "causal"), (32, 12, 512, 512, 64, "masked"),
    (1024, 3, 49, 49, 32, "masked"), (16, 8, 1024, 77, 32, "plain"), (16, 8, 1024, 77, 64, "plain"),
)  # fmt: skip
RECURRENT = (("lstm", 128, 128, 1024), ("lstm", 32, 400, 512), ("gru", 32, 400, 512))  # kind, batch, steps, width
UNCAPTURED = ("attention", "rnn")
"""Cases whose backward is autograd's, which runs on a stream of its own."""
SIZES = (2**18, 2**21, 2**24, 2**26)
"""Elements of the tensors that kernels bound by memory are timed on."""


def gemm(dtype: torch.dtype, m: int, n: int, k: int, batch: int) -> Passes:
    """The three products of a linear layer, or of a batch of products."""
    lead = (batch,) if batch > 1 else ()
    x, w, g = (random(*lead, *shape, dtype=dtype) for shape in ((m, k), (n, k), (m, n)))
    forward = (lambda: F.linear(x, w)) if batch == 1 else (lambda: torch.bmm(x, w.transpose(1, 2)))
    return {"forward": forward, "input": lambda: g @ w, "weight": lambda: g.transpose(-1, -2) @ x}


def convolution(
    dtype: torch.dtype, batch: int, side: int, inputs: int, outputs: int, kernel: int, stride: int, groups: int,
    channels_last: bool,
) -> Passes:  # fmt: skip
    """The three passes of a convolution."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    padding = 0 if kernel == stride else kernel // 2
    x = random(batch, inputs, side, side, dtype=dtype).to(memory_format=layout)
    w = random(outputs, inputs // groups, kernel, kernel, dtype=dtype).to(memory_format=layout)
    return kernel_cases.three_passes(x, w, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)


def attention(
    dtype: torch.dtype, batch: int, heads: int, queries: int, keys: int, size: int, kind: str
) -> Passes:  # fmt: skip
    """Fused attention, and what its backward takes."""
    q = random(batch, queries, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
    k, v = (random(batch, keys, heads, size, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(2))
    g = random(batch, heads, queries, size, dtype=dtype)
    mask = random(1, heads, queries, keys, dtype=dtype) if kind == "masked" else None

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=kind == "causal")

    out = forward()
    backward = lambda: torch.autograd.grad(out, (q, k, v), g, retain_graph=True)  # noqa: E731
    return {"forward": forward, "backward": backward}


def recurrent(dtype: torch.dtype, kind: str, batch: int, steps: int, width: int) -> Passes:
    """One recurrent layer by cuDNN."""
    layer = getattr(torch.nn, kind.upper())(width, width, batch_first=True).to(device_times.DEVICE, dtype)
    x, g = (random(batch, steps, width, dtype=dtype) for _ in range(2))
    x.requires_grad_()
    inputs = [x, *layer.parameters()]

    def both() -> Any:
        return torch.autograd.grad(layer(x)[0], inputs, g)

    return {"forward": lambda: layer(x)[0], "both": both}


def _norms(x: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Passes]]:
    """Norms with their backward: over rows in FP32, over channels in both layouts."""
    width = 1024
    rows = x.view(-1, width)
    weight = torch.ones(width, device=x.device, dtype=dtype)
    _, mean, rstd = aten.native_layer_norm(rows, [width], weight, weight, 1e-5)
    yield (
        "layer_norm",
        {
            "forward": lambda: aten.native_layer_norm(rows, [width], weight, weight, 1e-5),
            "backward": lambda: aten.native_layer_norm_backward(
                rows, rows, [width], mean, rstd, weight, weight, [True] * 3
            ),
        },
    )
    side, channels = 32, 128
    ones, half = (torch.ones(channels, device=x.device, dtype=each) for each in (torch.float32, dtype))
    images = x.view(-1, channels, side, side)
    shape = (images.shape[0], channels, side**2, 32)
    _, mu, sigma = aten.native_group_norm(images, half, half, *shape, 1e-5)
    yield (
        "group_norm",
        {
            "forward": lambda: aten.native_group_norm(images, half, half, *shape, 1e-5),
            "backward": lambda: aten.native_group_norm_backward(images, images, mu, sigma, half, *shape, [True] * 3),
        },
    )
    for label, layout in (("", torch.contiguous_format), ("_last", torch.channels_last)):
        yield f"batch_norm{label}", _batch_norm(images.to(memory_format=layout), ones)


def _batch_norm(x: Tensor, ones: Tensor) -> Passes:
    """With weights in FP32, by the library that torch would take."""
    running = [torch.zeros_like(ones), torch.ones_like(ones)]

    def forward() -> Any:
        return aten._batch_norm_impl_index(x, ones, ones, *running, True, 0.1, 1e-5, True)

    _, mu, sigma, reserve, index = forward()

    def backward() -> Any:
        return aten._batch_norm_impl_index_backward(
            index, x, x, ones, *running, mu, sigma, True, 1e-5, [True] * 3, reserve
        )

    return {"forward": forward, "backward": backward}


def _pointwise(x: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Passes]]:
    y = x.clone()
    yield "add", {"forward": lambda: x + y}
    yield "scale", {"forward": lambda: x * 0.5}
    yield "gelu", {"forward": lambda: F.gelu(x), "backward": lambda: aten.gelu_backward(x, y)}
    yield "silu", {"forward": lambda: F.silu(x), "backward": lambda: aten.silu_backward(x, y)}
    yield "relu", {"forward": lambda: F.relu(x), "backward": lambda: aten.threshold_backward(x, y, 0)}
    kept = aten.native_dropout(x, 0.1, True)[1]
    yield (
        "dropout",
        {
            "forward": lambda: aten.native_dropout(x, 0.1, True),
            "backward": lambda: aten.native_dropout_backward(x, kept, 1.1),
        },
    )
    other = torch.float32 if dtype is not torch.float32 else torch.bfloat16
    yield f"cast_to_{str(other)[6:]}", {"forward": lambda: x.to(other)}
    mixed = x.to(torch.bfloat16)
    yield "add_mixed", {"forward": lambda: x + mixed}


def _moves(x: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Passes]]:
    rows = x.view(-1, 1024)
    heads = x.view(-1, 256, 16, 64)
    images = x.view(-1, 64, 32, 32)
    yield "swap_heads", {"forward": lambda: heads.transpose(1, 2).contiguous()}
    yield "transpose", {"forward": lambda: x.view(-1, 512, 512).transpose(1, 2).contiguous()}
    yield "to_channels_last", {"forward": lambda: images.contiguous(memory_format=torch.channels_last)}
    last = images.contiguous(memory_format=torch.channels_last)
    yield "from_channels_last", {"forward": lambda: last.contiguous()}
    yield "add_layouts", {"forward": lambda: images + last}
    bias = random(64, dtype=dtype)[None, :, None, None]
    yield "add_channels", {"forward": lambda: images + bias}
    per_row = random(rows.shape[0], 1, dtype=dtype)
    yield "scale_rows", {"forward": lambda: rows * per_row}
    yield "cat", {"forward": lambda: torch.cat([rows[:, :512], rows[:, 512:]], 1)}
    yield "cat_channels", {"forward": lambda: torch.cat([images, images], 1)}
    yield "roll", {"forward": lambda: torch.roll(images.permute(0, 2, 3, 1).contiguous(), (3, 3), (1, 2))}
    yield "sum_rows", {"forward": lambda: rows.sum(0)}
    yield "sum_columns", {"forward": lambda: rows.sum(1)}
    yield "sum_channels", {"forward": lambda: images.sum((0, 2, 3))}
    yield "sum_channels_last", {"forward": lambda: last.sum((0, 2, 3))}
    yield "mean_side", {"forward": lambda: images.mean((2, 3))}
    for width in (64, 512, 32768):
        if x.numel() >= 8 * width:
            z = x.view(-1, width)
            yield (
                f"softmax_{width}",
                {
                    "forward": lambda z=z: torch.softmax(z, -1),
                    "backward": lambda z=z: aten._softmax_backward_data(z, z, -1, z.dtype),
                },
            )
    pooled, where = aten.max_pool2d_with_indices(images, [3, 3], [2, 2], [1, 1])
    yield (
        "max_pool",
        {
            "forward": lambda: aten.max_pool2d_with_indices(images, [3, 3], [2, 2], [1, 1]),
            "backward": lambda: aten.max_pool2d_with_indices_backward(
                pooled, images, [3, 3], [2, 2], [1, 1], [1, 1], False, where
            ),
        },
    )
    yield "upsample", {"forward": lambda: F.interpolate(images, scale_factor=2.0)}
    table, ids = random(30000, 1024, dtype=dtype), torch.randint(0, 30000, (rows.shape[0],), device=x.device)
    yield (
        "embedding",
        {
            "forward": lambda: F.embedding(ids, table),
            "backward": lambda: aten.embedding_dense_backward(rows, ids, 30000, -1, False),
        },
    )


def cases() -> Iterator[Case]:
    """Every case: kind, arguments, format, and what builds its passes."""
    for m, n, k, batch in GEMMS:
        for name, (dtype, _) in FORMATS.items():
            arguments = {"m": m, "n": n, "k": k, "batch": batch}
            yield "gemm", arguments, name, lambda d=dtype, a=arguments: gemm(d, **a)  # type: ignore[misc]
    for numbers in CONVOLUTIONS:
        keys = ("batch", "side", "inputs", "outputs", "kernel", "stride", "groups")
        for name, (dtype, _) in FORMATS.items():
            for last in (False, True):
                arguments = dict(zip(keys, numbers, strict=True)) | {"channels_last": last}
                yield "conv", arguments, name, lambda d=dtype, a=arguments: convolution(d, **a)  # type: ignore[misc]
    for shape in ATTENTIONS:
        keys = ("batch", "heads", "queries", "keys", "size", "kind")
        for name in ("fp32", "bf16", "fp16"):
            given = dict(zip(keys, shape, strict=True))
            yield "attention", given, name, lambda d=FORMATS[name][0], a=given: attention(d, **a)  # type: ignore[misc]
    for cell in RECURRENT:
        for name, (dtype, _) in FORMATS.items():
            given = dict(zip(("kind", "batch", "steps", "width"), cell, strict=True))
            yield "rnn", given, name, lambda d=dtype, a=given: recurrent(d, **a)  # type: ignore[misc]


def moves() -> Iterator[tuple[str, dict[str, Any], str, Passes]]:
    """Kernels bound by memory, by elements."""
    for size in SIZES:
        for name in ("fp32", "bf16", "fp16"):
            dtype = FORMATS[name][0]
            x = random(size, dtype=dtype)
            for group in (_pointwise(x, dtype), _moves(x, dtype), _norms(x, dtype)):
                for op, passes in group:
                    yield "memory", {"op": op, "size": size}, name, passes


def further() -> Iterator[Case]:
    """The cases of kernel_cases.py, those of matrix units without FP16, which is as fast as BF16."""
    formats = {name: dtype for name, (dtype, _) in FORMATS.items() if name != "fp16"}
    keys = ("batch", "sides", "inputs", "outputs", "kernel", "stride", "dilation", "groups")
    every = [(numbers, False) for numbers in kernel_cases.CONVOLUTIONS]
    every += [(numbers, True) for numbers in kernel_cases.TRANSPOSED]
    for numbers, transposed in every:
        for name, dtype in formats.items():
            for last in (False, True) if len(numbers[1]) > 1 else (False,):
                given = dict(zip(keys, numbers, strict=True)) | {"transposed": transposed, "channels_last": last}
                yield "conv", given, name, lambda d=dtype, a=given: kernel_cases.convolution(d, **a)  # type: ignore[misc]
    for m, n, k, batch in kernel_cases.GEMMS:
        for name, dtype in formats.items():
            given = {"m": m, "n": n, "k": k, "batch": batch}
            yield "gemm", given, name, lambda d=dtype, a=given: gemm(d, **a)  # type: ignore[misc]
    for shape in kernel_cases.ATTENTIONS:
        for name in ("fp32", "bf16"):
            given = dict(zip(("batch", "heads", "queries", "keys", "size", "kind"), shape, strict=True))
            yield "attention", given, name, lambda d=FORMATS[name][0], a=given: attention(d, **a)  # type: ignore[misc]
    for size in kernel_cases.SIZES:
        for name in ("fp32", "bf16", "fp16"):
            for op, build in kernel_cases.memory_ops(size, FORMATS[name][0]):
                if name != "fp16" or op.startswith("batch_norm"):
                    yield "op", {"op": op, "size": size}, name, build


def _peak(run: Callable[[], Any]) -> int:
    """Bytes that a pass takes at its peak."""
    before = torch.cuda.memory_allocated()
    device_times.forget_peak()
    run()
    return (device_times.peak_memory() or 0) - before


def timed(seconds: float, *, more: bool = False) -> list[dict[str, Any]]:
    """A row for each case, until the time is up; a pass that does not run is left out.

    Args:
        seconds: when to stop.
        more: whether the cases are those of kernel_cases.py.
    """
    start, rows = time.perf_counter(), []

    def add(kind: str, arguments: dict[str, Any], name: str, passes: Passes) -> None:
        row: dict[str, Any] = {"case": kind, "format": name, **arguments, "us": {}}
        for label, run in passes.items():
            try:
                with tf32(FORMATS[name][1]):
                    row["us"][label] = round(device_times.microseconds(run, capture=kind not in UNCAPTURED), 2)
                    if more and kind == "conv" and device_times.DEVICE == "cuda":
                        row.setdefault("bytes", {})[label] = _peak(run)
            except (RuntimeError, NotImplementedError) as error:
                row.setdefault("failed", {})[label] = str(error).splitlines()[0][:100]
        rows.append(row)

    for kind, given, name, passes in () if more else moves():
        add(kind, given, name, passes)
        if time.perf_counter() - start > seconds / 2:
            break
    for kind, given, name, build in further() if more else cases():
        if time.perf_counter() - start > seconds:
            break
        try:
            passes = build()
        except (RuntimeError, NotImplementedError) as error:
            rows.append({"case": kind, "format": name, **given, "us": {}, "failed": {"all": str(error)[:100]}})
            continue
        add(kind, given, name, passes)
    return rows


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of kernels_<gpu>.json")
    parser.add_argument("--seconds", type=float, default=60.0, help="when to stop")
    parser.add_argument("--further", action="store_true", help="the cases of kernel_cases.py alone")
    args = parser.parse_args()
    name = torch.cuda.get_device_name()
    found = {"version": 1, "gpu": name, "torch": torch.__version__, "rows": timed(args.seconds, more=args.further)}
    args.out.mkdir(parents=True, exist_ok=True)
    stem = "kernels_further" if args.further else "kernels"
    write_atomic(args.out / f"{stem}_{name.split()[-1].lower()}.json", json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
