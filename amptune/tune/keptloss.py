"""A loss that the model makes itself, by a ``loss_function`` that it keeps: models of transformers with labels."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from amptune.capture.fakes import map_tensors
from amptune.core.formats import Format
from amptune.runtime import cast_all, compile_kept_loss, keep_loss, tensors_in, undo_plan
from amptune.tune.compilation import BACKEND
from amptune.tune.costs import times_of
from amptune.tune.losses import PLAIN_LOSS
from amptune.tune.recipes import Candidate
from amptune.tune.space import COMPILED_LOSS
from amptune.tune.training import Workbench, loss_of, training

Call = tuple[tuple[Any, ...], dict[str, Any]]


def makes_kept_loss(bench: Workbench, batch: Any) -> bool:
    """Whether the model makes its loss of a batch by the one ``loss_function`` that it keeps."""
    return _call_of_loss(bench, batch) is not None


def measure_kept_loss(
    bench: Workbench, batch: Any, choices: Iterable[str], low: Format, backend: str = BACKEND
) -> dict[str, float]:
    """Milliseconds of forward and backward of the kept loss for each of ``choices`` on logits in ``low``, with casts.

    And ``PLAIN_LOSS`` as it is. A choice that does not run is left out; empty for a model that keeps no loss.
    """
    call = _call_of_loss(bench, batch)
    if call is None:
        return {}
    args, kwargs = cast_all(call, getattr(torch, low.torch_name))
    leaves = [tensor.requires_grad_() for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
    del call
    (module,) = keep_loss(bench.model)
    found = {}
    for choice in choices:

        def once() -> None:
            torch.autograd.grad(module.loss_function(*args, **kwargs), leaves, allow_unused=True)  # type: ignore[operator]

        try:
            if choice == COMPILED_LOSS:
                compile_kept_loss(module, backend)
            once()  # what compiles, compiles here
            found[choice] = statistics.median(times_of(once, bench.device))
        except Exception:  # the loss is not ours; the choice will fail in its trial, with the reason
            continue
        finally:
            undo_plan(bench.model)
    as_it_is = next((ms for choice, ms in found.items() if choice != COMPILED_LOSS), None)
    return found if as_it_is is None else {**found, PLAIN_LOSS: as_it_is}


def _call_of_loss(bench: Workbench, batch: Any) -> Call | None:
    """What the loss is called with in the FP32 forward, detached; None where it is not called just once, or gives more
    than the loss, as those of detection do: they match boxes outside of torch, which no compiler follows."""
    modules = keep_loss(bench.model)
    if len(modules) != 1:
        return None
    heard: list[Call | None] = []

    def keep(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        is_loss = isinstance(result, torch.Tensor) and result.numel() == 1
        heard.append(map_tensors((args, kwargs), torch.Tensor.detach) if is_loss else None)

    with training(bench, Candidate("fp32")), bench.no_gradients(), _listening(modules[0], keep):
        loss_of(bench, Candidate("fp32"), batch)
    bench.restore()
    return heard[0] if len(heard) == 1 else None


@contextlib.contextmanager
def _listening(module: nn.Module, keep: Callable[[tuple[Any, ...], dict[str, Any], Any], None]) -> Iterator[None]:
    """Calls of the module's ``loss_function`` and their results while the block runs."""
    before = dict(vars(module))
    function: Any = module.loss_function

    def listen(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        keep(args, kwargs, result)
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
