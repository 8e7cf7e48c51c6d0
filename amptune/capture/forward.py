"""One forward and loss of a target under a recorder: the part that all frontends share."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from amptune.capture.calls import CallRecorder
from amptune.capture.target import Target, batch_tensors, loss_inside, tensors_in


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model and a batch to record: real, or fake and without memory."""

    target: Target
    model: nn.Module
    batch: Any


def run(prepared: Prepared, recorder: CallRecorder) -> tuple[list[torch.Tensor], bool]:
    """Call the model, and the loss where the target has one, with the recorder on.

    Returns:
        The tensors that come out at the end, and whether a loss is among what was recorded.
    """
    target = prepared.target
    with recorder.watch():
        output = target.call(prepared.model, prepared.batch)
        if target.loss_fn is not None:
            recorder.in_loss = True
            loss = target.loss(output, prepared.batch)
            recorder.has_gradient = loss.requires_grad
            return [loss], True
    loss, outputs = loss_inside(output), list(tensors_in(output))
    recorder.has_gradient = any(tensor.requires_grad for tensor in (outputs if loss is None else tensors_in(loss)))
    return outputs, loss is not None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For numbers beside fakes, which are few: where others have work for the processor, threads spend more on waiting
    for each other than on the numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """The same random numbers in every capture, and the process's own afterwards."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    arrays = numpy.random.get_state() if numpy is not None else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            random.seed(0)
            torch.manual_seed(0)
            if numpy is not None:
                numpy.random.seed(0)
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)


def batch_names(batch: Any) -> list[tuple[str, torch.Tensor]]:
    """A name for each tensor of a batch: its key in a dict, else ``input_n``."""
    keyed = batch.items() if isinstance(batch, dict) else ()
    names = {id(tensor): f"batch_{key}" for key, tensor in keyed if isinstance(tensor, torch.Tensor)}
    unique = {id(tensor): tensor for tensor in batch_tensors(batch)}
    return [(_identifier(names.get(key, f"input_{n}")), tensor) for n, (key, tensor) in enumerate(unique.items())]


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
