"""A loss that the model makes itself, from labels in the batch: by a ``loss_function`` that it keeps, as models of
transformers do, or by a cross entropy that its forward calls."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from amptune.capture.fakes import map_tensors
from amptune.core.formats import Format
from amptune.runtime import cast_all, compile_kept_loss, keep_loss, losses_compiled, tensors_in, undo_plan
from amptune.tune.compilation import BACKEND
from amptune.tune.costs import times_of
from amptune.tune.losses import PLAIN_LOSS
from amptune.tune.recipes import Candidate
from amptune.tune.space import COMPILED_LOSS
from amptune.tune.training import Workbench, training

Call = tuple[tuple[Any, ...], dict[str, Any]]
Heard = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
MAX_CALLS = 8
"""Losses of a forward that are compiled, each for its own shapes: a compiler takes seconds for one."""


def makes_loss(bench: Workbench, batch: Any) -> bool:
    """Whether the model makes a loss of a batch by what can be compiled by itself."""
    return bool(_calls_of_loss(bench, batch))


def measure_model_loss(
    bench: Workbench, batch: Any, choices: Iterable[str], low: Format, backend: str = BACKEND
) -> dict[str, float]:
    """Milliseconds of forward and backward of the model's loss for each of ``choices`` on logits in ``low``.

    Casts included, and ``PLAIN_LOSS`` as it is. A choice that does not run is left out; empty for a model that makes
    no loss.
    """
    calls = cast_all(_calls_of_loss(bench, batch), getattr(torch, low.torch_name))
    if not calls:
        return {}
    leaves = [tensor.requires_grad_() for tensor in tensors_in(calls) if tensor.is_floating_point()]
    kept = keep_loss(bench.model)

    def once() -> None:
        for args, kwargs in calls:
            loss = kept[0].loss_function if kept else F.cross_entropy
            torch.autograd.grad(loss(*args, **kwargs).sum(), leaves, allow_unused=True)  # type: ignore[operator]

    found = {}
    for choice in choices:
        try:
            with _compiled(kept, backend) if choice == COMPILED_LOSS else contextlib.nullcontext():
                once()  # what compiles, compiles here
                found[choice] = statistics.median(times_of(once, bench.device))
        except Exception:  # the loss is not ours; the choice will fail in its trial, with the reason
            continue
    as_it_is = next((ms for choice, ms in found.items() if choice != COMPILED_LOSS), None)
    return found if as_it_is is None else {**found, PLAIN_LOSS: as_it_is}


@contextlib.contextmanager
def _compiled(kept: list[nn.Module], backend: str) -> Iterator[None]:
    if not kept:
        with losses_compiled(backend):
            yield
        return
    compile_kept_loss(kept[0], backend)
    try:
        yield
    finally:
        undo_plan(kept[0])


def _calls_of_loss(bench: Workbench, batch: Any) -> list[Call]:
    """What the loss is called with in the FP32 forward, detached; none where that is not to be compiled.

    A kept loss is called just once, and does not give more than the loss, as those of detection do: they match boxes
    outside of torch, which no compiler follows.
    """
    kept = keep_loss(bench.model)
    if len(kept) > 1:
        return []
    heard: list[Call | None] = []

    def keep(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        is_loss = isinstance(result, torch.Tensor) and (not kept or result.numel() == 1)
        heard.append(map_tensors((args, kwargs), torch.Tensor.detach) if is_loss else None)

    listening = _listening(kept[0], keep) if kept else _listening_to_calls(keep)
    with training(bench, Candidate("fp32")), bench.no_gradients(), bench.without_dropout(), listening:
        bench.target.call(bench.model, batch)
    bench.restore()
    calls = [call for call in heard if call is not None]
    return calls if len(calls) == len(heard) <= (1 if kept else MAX_CALLS) else []


@contextlib.contextmanager
def _listening_to_calls(heard: Heard) -> Iterator[None]:
    """Calls of the cross entropy of ``torch.nn.functional`` and their results while the block runs."""
    called = F.cross_entropy

    def listen(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = called(*args, **kwargs)
        heard(args, kwargs, result)
        return result

    F.cross_entropy = listen
    try:
        yield
    finally:
        F.cross_entropy = called


@contextlib.contextmanager
def _listening(module: nn.Module, heard: Heard) -> Iterator[None]:
    """Calls of the module's ``loss_function`` and their results while the block runs."""
    before = dict(vars(module))
    function: Any = module.loss_function

    def listen(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        heard(args, kwargs, result)
        return result

    module.loss_function = listen  # type: ignore[assignment]
    changed = {name for name, value in vars(module).items() if name not in before or before[name] is not value}
    try:
        yield
    finally:
        for name in changed:
            vars(module).pop(name, None)
            if name in before:
                vars(module)[name] = before[name]
