"""A loss that the model makes itself, from labels in the batch: by a ``loss_function`` that it keeps, as models of
transformers do, or by a cross entropy that its forward calls."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from amptune.capture.fakes import map_tensors
from amptune.core.formats import Format
from amptune.runtime import cast_all, compile_kept_loss, keep_loss, losses_compiled, tensors_in, undo_plan
from amptune.tune.choices.space import COMPILED_LOSS
from amptune.tune.prices.costs import times_of
from amptune.tune.prices.losses import PLAIN_LOSS
from amptune.tune.running.compilation import BACKEND
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, training

MAX_CALLS = 8
"""Losses of a forward that are compiled, each for its own shapes: a compiler takes seconds for one."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One loss of a forward.

    Attributes:
        module: the module whose ``loss_function`` was called; None for the cross entropy of ``torch.nn.functional``.
        args, kwargs: what it was called with, detached.
        is_number: whether it gave one number.
    """

    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_number: bool

    def __call__(self) -> torch.Tensor:
        """The loss, by the function that stands there now."""
        function: Any = F.cross_entropy if self.module is None else self.module.loss_function
        return function(*self.args, **self.kwargs)  # type: ignore[no-any-return]


class ModelLoss:
    """The loss that a model makes of a batch itself, found by one FP32 forward when it is first asked for.

    What it was called with, logits as large as any tensor of a step, is kept until that is timed, or to ``forget``.
    """

    def __init__(self, bench: Workbench, batch: Any) -> None:
        self._bench = bench
        self._batch = batch
        self._is_made: bool | None = None
        self._calls: list[Call] = []

    @property
    def is_made(self) -> bool:
        """Whether the model makes a loss by what can be compiled by itself.

        Not where gradients are taken on the way: those of what is compiled have no gradients themselves.
        """
        if self._is_made is None:
            self._calls = [] if self._bench.takes_gradients else _losses_of(self._bench, self._batch)
            self._is_made = bool(self._calls)
        return self._is_made

    def forget(self) -> None:
        """Let go of what is kept; whether the loss is made stays known."""
        self._calls = []

    def measure(self, choices: Iterable[str], low: Format, backend: str = BACKEND) -> dict[str, float]:
        """Milliseconds of forward and backward of the loss for each of ``choices`` on logits in ``low``.

        Casts included, and ``PLAIN_LOSS`` as it is. A choice that does not run is left out; empty for a model that
        makes no loss.
        """
        if not self.is_made:
            return {}
        calls = self._calls or _losses_of(self._bench, self._batch)
        self.forget()
        return _measured(self._bench, calls, choices, low, backend)


def _measured(
    bench: Workbench, calls: list[Call], choices: Iterable[str], low: Format, backend: str
) -> dict[str, float]:
    dtype = getattr(torch, low.torch_name)
    calls[:] = [
        dataclasses.replace(call, args=cast_all(call.args, dtype), kwargs=cast_all(call.kwargs, dtype))
        for call in calls
    ]
    inputs = tensors_in([(call.args, call.kwargs) for call in calls])
    leaves = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]

    def once() -> None:
        for call in calls:
            torch.autograd.grad(call().sum(), leaves, allow_unused=True)

    found = {}
    for choice in choices:
        compiling = _compiled(calls, backend) if choice == COMPILED_LOSS else contextlib.nullcontext()
        try:
            with compiling:
                once()  # what compiles, compiles here
                found[choice] = statistics.median(times_of(once, bench.device))
        except Exception:  # the loss is not ours; the choice will fail in its trial, with the reason
            continue
    as_it_is = next((ms for choice, ms in found.items() if choice != COMPILED_LOSS), None)
    return found if as_it_is is None else {**found, PLAIN_LOSS: as_it_is}


@contextlib.contextmanager
def _compiled(calls: Iterable[Call], backend: str) -> Iterator[None]:
    modules = [call.module for call in calls if call.module is not None]
    try:
        for module in modules:
            compile_kept_loss(module, backend)
        with losses_compiled(backend):
            yield
    finally:
        for module in modules:
            undo_plan(module)


def _losses_of(bench: Workbench, batch: Any) -> list[Call]:
    """The losses of the FP32 forward; none where they are not to be compiled.

    A ``loss_function`` is called just once, and does not give more than the loss, as those of detection do: they match
    boxes outside of torch, which no compiler follows.
    """
    kept: list[Call] = []
    called: list[Call] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(training(bench, Candidate("fp32")))
        stack.enter_context(bench.no_gradients())
        stack.enter_context(bench.without_dropout())
        for module in keep_loss(bench.model):
            stack.enter_context(_listening(module, kept.append))
        stack.enter_context(_listening_to_calls(called.append))
        bench.target.call(bench.model, batch)
    bench.restore()
    if kept:
        return kept if len(kept) == 1 and kept[0].is_number else []
    return called if len(called) <= MAX_CALLS else []


@contextlib.contextmanager
def _listening_to_calls(heard: Callable[[Call], None]) -> Iterator[None]:
    """Calls of the cross entropy of ``torch.nn.functional`` while the block runs."""
    called = F.cross_entropy
    F.cross_entropy = _heard(called, None, heard)
    try:
        yield
    finally:
        F.cross_entropy = called


@contextlib.contextmanager
def _listening(module: nn.Module, heard: Callable[[Call], None]) -> Iterator[None]:
    """Calls of the module's ``loss_function`` while the block runs."""
    before = dict(vars(module))
    module.loss_function = _heard(module.loss_function, module, heard)  # type: ignore[assignment]
    changed = {name for name, value in vars(module).items() if name not in before or before[name] is not value}
    try:
        yield
    finally:
        for name in changed:
            vars(module).pop(name, None)
            if name in before:
                vars(module)[name] = before[name]


def _heard(function: Any, module: nn.Module | None, heard: Callable[[Call], None]) -> Callable[..., Any]:
    """``function``, each of whose calls is told."""

    def listen(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        args, kwargs = map_tensors((args, kwargs), torch.Tensor.detach)
        heard(Call(module, args, kwargs, isinstance(result, torch.Tensor) and result.numel() == 1))
        return result

    return listen
