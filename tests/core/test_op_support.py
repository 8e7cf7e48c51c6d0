"""The generated table of ops without 16-bit kernels, checked by running some of them on the CPU."""

from __future__ import annotations

import pytest
import torch

from amptune.core.op_support import lacks_kernel, ops_without_kernel, table_version, tried_on, tried_with

SQUARE = torch.eye(4)
TRIED = {
    "cholesky": torch.linalg.cholesky,
    "inverse": torch.linalg.inv,
    "qr": torch.linalg.qr,
    "fft": torch.fft.fft,
    "cdist": lambda x: torch.cdist(x, x),
    "exp": torch.exp,
    "softmax": lambda x: torch.softmax(x, -1),
    "matmul": lambda x: x @ x,
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, (4,)),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", TRIED)
def test_the_table_says_what_torch_does_on_the_cpu(op: str, dtype: str) -> None:
    try:
        TRIED[op](SQUARE.to(getattr(torch, dtype)))
        runs = True
    except RuntimeError:
        runs = False
    assert lacks_kernel(op, dtype, "cpu") is not runs


@pytest.mark.parametrize("op", ["matmul", "bmm", "linear", "scaled_dot_product_attention"])
def test_products_run_in_bf16_on_cuda(op: str) -> None:
    """A table made without a GPU would say that they do not, unless all capabilities are assumed."""
    assert not lacks_kernel(op, "bfloat16", "cuda")


def test_backward_gaps_and_unknown_ops() -> None:
    assert lacks_kernel("embedding_bag", "bfloat16", "cuda", "backward")
    assert not lacks_kernel("embedding_bag", "bfloat16", "cuda")
    assert not lacks_kernel("no_such_op", "float16", "cuda")


def test_the_table_names_its_torch() -> None:
    assert table_version().startswith("2.")


def test_cells_say_how_they_were_obtained() -> None:
    assert tried_on("cpu"), "the CPU's part was run"
    assert table_version("cpu").startswith("2.")
    assert "cholesky" in ops_without_kernel("bfloat16", "cpu")
    assert "exp" not in ops_without_kernel("bfloat16", "cpu")
    assert len(ops_without_kernel("float8_e4m3fn", "cpu")) > 100


def test_the_cuda_part_was_run_on_a_gpu() -> None:
    assert "H200" in tried_on("cuda")
    assert lacks_kernel("lu", "float16", "cuda")
    assert lacks_kernel("ctc_loss", "float16", "cuda")
    assert not lacks_kernel("fft", "float16", "cuda"), "sizes that are powers of two run"


def test_another_torch_than_the_table_s_is_said() -> None:
    made = table_version("cuda").split("+")[0]
    assert tried_with("cuda", "") == tried_with("cuda", made + "+cu130") == f"torch {made}"
    assert tried_with("cuda", "9.9.0+cpu") == f"torch {made}; not tried with 9.9.0, which is installed"
