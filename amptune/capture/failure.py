"""From what a frontend raised to one message: which module, which line, what to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from amptune.capture.fakerecord import UnknownValueError
from amptune.capture.modulestack import ModuleCall
from amptune.capture.target import tensors_in
from amptune.capture.usercode import UserCodeError, text_of
from amptune.errors import CaptureError

_FAKE_LIMITS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    UnknownValueError,
)
_INDEX_WORDS = ("out of range in self", "out of bounds", "is out of range")
LOSS_HINT = "loss_fn gets what the model returned, and the whole batch"
_SHAPE_WORDS = ("shape", "size", "dimension", "broadcast", "channels", "elements", "expected input")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One frontend's failure: what was raised, the innermost module call that it came through and what that was given,
    and whether the loss was running."""

    frontend: str
    error: UserCodeError
    module: ModuleCall | None = None
    inputs: tuple[Any, ...] = ()
    in_loss: bool = False

    @property
    def needs_values(self) -> bool:
        """Whether it failed for want of the values that fakes do not have."""
        return self.frontend != "record-real" and isinstance(self.error.cause, _FAKE_LIMITS)


def explained(attempts: Sequence[Attempt]) -> CaptureError:
    """The error that the user gets: that of the attempt that says most about the user's own code."""
    told = max(attempts, key=_weight)
    where = f"{told.error.place}: " if told.error.place else ""
    module = f"{_described(told)} failed: "
    if told.needs_values:
        return CaptureError(
            f"{where}{module}the code needs a value that only a real run has ({told.error})",
            hint="let the capture run the model for real (frontend record-real), or make the model smaller",
        )
    error = CaptureError(f"{where}{module}{told.error}", hint=_hint(told))
    error.place = told.error.place
    return error


def _weight(attempt: Attempt) -> int:
    """A real run is right; torch.export refuses much that runs; fakes refuse only what needs a value."""
    if attempt.frontend == "export":
        return 0
    if attempt.needs_values:
        return 1
    return 3 if attempt.frontend == "record-real" else 2


def _described(attempt: Attempt) -> str:
    module = attempt.module
    if module is None:
        return "loss_fn(output, batch)" if attempt.in_loss else "the model"
    name = f"{module.path or 'the model'} ({module.type_name})"
    shapes = [shown(tensor) for tensor in tensors_in(attempt.inputs)]
    return f"{name} with input {', '.join(shapes)}" if shapes else name


def shown(tensor: torch.Tensor) -> str:
    """``8x20 float32``."""
    shape = "x".join(str(extent) for extent in tensor.shape) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def _rows(attempt: Attempt) -> str:
    """Which row was asked for of how many, where a real table says so."""
    module = attempt.module.module if attempt.module is not None else None
    asked = [each for each in tensors_in(attempt.inputs) if not isinstance(each, FakeTensor) and each.numel()]
    if not isinstance(module, torch.nn.Embedding) or len(asked) != 1 or asked[0].is_floating_point():
        return ""
    lowest, highest = int(asked[0].min()), int(asked[0].max())
    if lowest < 0:
        return f"row {lowest} was asked for, and rows are counted from 0: "
    return f"row {highest} was asked for, and the table has {module.num_embeddings}: "


def _hint(attempt: Attempt) -> str:
    cause, text = attempt.error.cause, text_of(attempt.error.cause).lower()
    if isinstance(cause, IndexError) and any(word in text for word in _INDEX_WORDS):
        rows = _rows(attempt)
        if rows.startswith("row -"):
            return f"{rows}look for -1 where the batch of make_batch() is padded, or how the forward computes the rows"
        return (
            f"{rows}make the indices of the batch smaller, or its sequences shorter where they are "
            "positions: change make_batch(), or give --input SHAPE:int64:BOUND"
        )
    if any(word in text for word in _SHAPE_WORDS):
        if attempt.module is not None and attempt.module.path:
            return (f"make what goes into {attempt.module.path} fit it: the layers before it, or the batch of "
                    "make_batch() or --input")  # fmt: skip
        return "make the batch fit the model: change make_batch(), or give --input SHAPE"
    if attempt.in_loss:
        return LOSS_HINT
    return "the model must run by itself first: model(inputs) with the batch of make_batch() or --input"
