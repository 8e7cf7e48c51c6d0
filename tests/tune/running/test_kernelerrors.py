"""Each error is raised by torch itself, so that a change of its words shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amptune.tune.running.kernelerrors import plain_reason

X = torch.ones(4, 8)
LOW = X.bfloat16()
ROWS = torch.arange(4)


def raised_by(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda: LOW @ X.T, "an operation"),
        (lambda: F.linear(LOW, torch.ones(3, 8)), "an operation"),
        (lambda: F.conv1d(LOW, torch.ones(3, 4, 3)), "an operation"),
        (lambda: torch.einsum("ij,kj->ik", LOW, X), "an operation"),
        (lambda: F.scaled_dot_product_attention(LOW[None], X[None], X[None]), "an operation"),
        (lambda: torch.zeros(4, 8).index_add_(0, ROWS, LOW), "index_add"),
        (lambda: torch.zeros(4, 8).index_put((ROWS,), LOW), "an operation"),
        (lambda: torch.zeros(4, 8).index_copy(0, ROWS, LOW), "index_copy"),
        (lambda: torch.zeros(4, 8).masked_scatter(X > 0, LOW), "masked_scatter"),
        (lambda: X.lerp(LOW, 0.5), "an operation"),
        (lambda: F.binary_cross_entropy(LOW, X), "an operation"),
    ],
)
def test_formats_that_clash_are_named(call: Callable[[], object], op: str) -> None:
    said = plain_reason(raised_by(call), "net.py:7")
    assert said.startswith(f"{op} takes tensors of one dtype, and got ")
    assert "BF16" in said
    assert "FP32" in said
    assert " (net.py:7): cast one to the other's there" in said


def test_formats_that_clash_and_are_not_named_by_torch() -> None:
    said = plain_reason(raised_by(lambda: torch.zeros(4, 8).scatter_add(0, ROWS[:, None], LOW)), "")
    assert said == "scatter takes tensors of one dtype: cast one to the other's there, as y.to(x.dtype) does"
    low = torch.ones(8, dtype=torch.bfloat16)
    said = plain_reason(raised_by(lambda: F.layer_norm(X, (8,), low, low)), "")
    assert said.startswith("an operation takes tensors of one dtype")


@pytest.mark.parametrize(
    ("call", "op"),
    [
        (lambda: torch.fft.rfft(LOW), "an operation"),
        (lambda: torch.cdist(LOW, LOW), "cdist"),
        (lambda: torch.linalg.inv(LOW[:, :4]), "linalg.inv"),
        (lambda: torch.linalg.cholesky(LOW[:, :4]), "cholesky"),
        (lambda: torch.linalg.svd(LOW[:, :4]), "linalg_svd"),
        (lambda: torch.pinverse(LOW), "linalg.pinv"),
        (lambda: LOW.numpy(), "an operation"),
    ],
)
def test_a_kernel_that_is_missing(call: Callable[[], object], op: str) -> None:
    said = plain_reason(raised_by(call), "net.py:7")
    assert said == f"{op} has no kernel for BF16 here (net.py:7): compute it in FP32, with autocast off and x.float()"


def test_a_kernel_that_is_missing_for_a_format_that_torch_does_not_name() -> None:
    assert plain_reason(raised_by(lambda: torch.quantile(LOW, 0.5)), "").startswith("quantile has no kernel for")
    text = ("could not create a primitive descriptor for the LSTM forward propagation primitive. Run workload with "
            "environment variable ONEDNN_VERBOSE=all to get additional diagnostic information.")  # fmt: skip
    said = plain_reason(RuntimeError(text), "net.py:7")
    assert said == (
        "LSTM forward propagation has no kernel for the formats of this recipe here (net.py:7): "
        "compute it in FP32, with autocast off and x.float()"
    )


def test_a_constant_that_is_too_large() -> None:
    said = plain_reason(raised_by(lambda: X.half().masked_fill(X > 0, -1e9)), "net.py:7")
    assert said.startswith("a constant of the model does not fit into FP16 (net.py:7): take torch.finfo(x.dtype).min")


@pytest.mark.parametrize(
    "error",
    [
        raised_by(lambda: X @ X),
        raised_by(lambda: nn.Linear(3, 3)(X)),
        raised_by(lambda: X.reshape(7)),
        raised_by(lambda: F.cross_entropy(X, ROWS.float())),
        raised_by(lambda: X[9]),
        raised_by(lambda: X.long().softmax(-1)),
        ValueError("the same types of dtype"),
        RuntimeError("the loss is float, and I want it to be 3"),
    ],
    ids=str,
)
def test_other_errors_keep_their_words(error: Exception) -> None:
    words = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    assert plain_reason(error, "") == words
    assert plain_reason(error, "net.py:7") == f"{words} (net.py:7)"


def test_an_error_without_words() -> None:
    assert plain_reason(ValueError(), "") == "ValueError"


def test_torchscript_is_told_by_what_failed_in_it() -> None:
    scripted = torch.jit.trace(nn.Linear(8, 3), X)
    assert "TorchScript" not in plain_reason(raised_by(lambda: scripted(LOW)), "net.py:7")
