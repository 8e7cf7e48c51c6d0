"""One real forward and backward in FP32 on the user's batch, and the values that every site gives in it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from amptune.capture.build import build_graph
from amptune.capture.fakes import map_tensors
from amptune.capture.forward import Prepared, batch_names, repeatable
from amptune.capture.memory import available_bytes, readable_bytes
from amptune.capture.modulestack import ModuleStack
from amptune.capture.prepare import prepare_fake, prepare_real, weight_bytes
from amptune.capture.record import GraphRecorder
from amptune.capture.target import Target, tensors_in
from amptune.capture.usercode import UserCodeError, quiet, user_code
from amptune.core.graph import Site
from amptune.core.observed import Observed, Stat
from amptune.errors import WorkError
from amptune.runtime import set_backend_flags

COPIES = 4
"""Weights, gradients and about as much again for activations: what has to fit into half of the free memory."""
MASK = 1e38
"""From where on a number is a mask, as finfo(float32).min is, and no value; another format has its own."""
SAMPLE = 1 << 16
"""Values of a tensor whose exponents are counted."""
_FEW_CHANNELS = 16
_OFFSET = 160
"""Makes the exponents of FP32 positive."""


def observe_step(target: Target, *, train: bool = True) -> Observed:
    """Run the model with its initial weights in FP32 on its batch and look at every value.

    Raises:
        WorkError: the model is too large to run here, or it does not run.
        TargetError: the model or the batch cannot be made.
    """
    _check_memory(target, train)
    try:
        prepared, recorder, loss = _recorded(target, train)
    except UserCodeError as error:
        where = f"{error.place}: " if error.place else ""
        raise WorkError(f"{where}the step for --calibrate failed: {error}", hint="leave --calibrate out") from error
    module = recorder.module(recorder.outputs)
    sites = build_graph(module, prepared.model)
    nodes = {node.name: node for node in module.graph.nodes}
    forward = {site.id: found for site in sites if (found := _joined(site, nodes, recorder.values))}
    gradient = {site.id: found for site in sites if (found := _joined(site, nodes, recorder.gradients))}
    device = next(iter(prepared.model.parameters()), torch.empty(0)).device.type
    return Observed(forward, gradient, device, loss if math.isfinite(loss) else None)


def _recorded(target: Target, train: bool) -> tuple[Prepared, StatRecorder, float]:
    """The step on the GPU where there is one that holds it; else where the user's code puts it."""
    if torch.cuda.is_available():
        try:
            return _recorded_on(target, train, on_gpu=True)
        except torch.OutOfMemoryError:  # the processor's memory was looked at, the GPU's was not
            torch.cuda.empty_cache()
    return _recorded_on(target, train, on_gpu=False)


def _recorded_on(target: Target, train: bool, *, on_gpu: bool) -> tuple[Prepared, StatRecorder, float]:
    with user_code(), quiet(), repeatable(), _exact():
        prepared = prepare_real(target, train=train, notes=[])
        if on_gpu:
            prepared = _on_gpu(prepared)
        recorder = StatRecorder(prepared)
        return prepared, recorder, _step(prepared, recorder)


def _check_memory(target: Target, train: bool) -> None:
    prepared, _ = prepare_fake(target, train=train, notes=[])
    needed, free = COPIES * weight_bytes(prepared.model), available_bytes()
    if needed > free // 2:
        raise WorkError(
            f"--calibrate runs the model for real, which takes about {readable_bytes(needed)}, and "
            f"{readable_bytes(free)} are free",
            hint="calibrate a smaller configuration of the same model, or leave --calibrate out: bounds need no run",
        )


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """FP32 without TF32, as the reference."""
    restore = set_backend_flags(tf32=False)
    try:
        yield
    finally:
        restore()


def _on_gpu(prepared: Prepared) -> Prepared:
    batch = map_tensors(prepared.batch, lambda tensor: tensor.cuda())
    return dataclasses.replace(prepared, model=prepared.model.cuda(), batch=batch)


def _step(prepared: Prepared, recorder: StatRecorder) -> float:
    target = prepared.target
    for name, tensor in batch_names(prepared.batch):
        recorder.add_input(name, tensor)
    with recorder.watch():
        output = target.call(prepared.model, prepared.batch)
        recorder.in_loss = target.loss_fn is not None
        if recorder.in_loss:
            loss = target.loss(output, prepared.batch)
    if not recorder.in_loss:
        loss = target.loss(output, prepared.batch)
    recorder.outputs = [loss] if recorder.in_loss else list(tensors_in(output))
    if loss.requires_grad:
        loss.backward()
    return float(loss.detach())


class StatRecorder(GraphRecorder):
    """A recorder that looks at the values of each tensor as it is made, and at its gradient."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(prepared.model, ModuleStack(prepared.model))
        self.values: dict[fx.Node, Stat] = {}
        self.gradients: dict[fx.Node, Stat] = {}
        self.outputs: list[torch.Tensor] = []

    def on_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run and record one call, then read its results."""
        result = super().on_call(func, args, kwargs)
        if not isinstance(result, torch.Size):
            for tensor in tensors_in(result):
                if (node := self._maker(tensor)) is not None:
                    self._look(node, tensor)
        return result

    def _maker(self, tensor: torch.Tensor) -> fx.Node | None:
        if id(tensor) in self._unpacked:
            return self._unpacked[id(tensor)][0]
        return self._nodes.get(id(tensor))

    def _look(self, node: fx.Node, tensor: torch.Tensor) -> None:
        _note(self.values, node, tensor)
        if tensor.requires_grad and tensor.is_floating_point():
            with torch._C.DisableTorchFunction():
                tensor.register_hook(functools.partial(_note, self.gradients, node))


def _note(table: dict[fx.Node, Stat], node: fx.Node, tensor: torch.Tensor | None) -> None:
    found = None if tensor is None else stat_of(tensor)  # a result that nothing was worked out from has no gradient
    if found is not None:
        table[node] = found.joined(table[node]) if node in table else found


def stat_of(tensor: torch.Tensor) -> Stat | None:
    """The values of a floating tensor; ``None`` for another kind, or an empty one."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        if not tensor.is_floating_point() or not tensor.numel() or tensor.layout is not torch.strided:
            return None
        values = tensor.detach().float()
        count, nonfinite = values.numel(), 0
        low, high = torch.aminmax(values)
        if not (abs(low) < MASK and abs(high) < MASK):
            finite = values[values.abs() < MASK]
            nonfinite = count - finite.numel()
            if not finite.numel():
                return Stat(0.0, 0.0, count, 0, count)
            low, high = torch.aminmax(finite)
            return _measured(finite, float(low), float(high), count, nonfinite, 0.0)
        return _measured(values, float(low), float(high), count, 0, channel_spread(values))


def _measured(values: torch.Tensor, low: float, high: float, count: int, nonfinite: int, spread: float) -> Stat:
    """Extremes are those of all values; zeros and exponents are counted in a regular sample of large tensors."""
    flat = values.reshape(-1)
    sample = flat[:: max(flat.numel() // SAMPLE, 1)]
    exponents = torch.frexp(sample[sample != 0])[1].long() + _OFFSET
    counts = torch.bincount(exponents) if exponents.numel() else torch.zeros(0)
    zeros = round((1 - exponents.numel() / sample.numel()) * (count - nonfinite))
    weight = (count - nonfinite) / sample.numel()
    found = {index - _OFFSET - 1: round(number * weight) for index, number in enumerate(counts.tolist()) if number}
    return Stat(low, high, count, zeros, nonfinite, found, spread)


def channel_spread(values: torch.Tensor) -> float:
    """The largest channel maximum over the median one, channels along the last axis; 0 where it says nothing."""
    if values.dim() < 2 or values.shape[-1] < _FEW_CHANNELS:
        return 0.0
    sizes = values.abs().reshape(-1, values.shape[-1]).amax(0)
    middle = float(sizes.median())
    spread = float(sizes.max()) / middle if middle > 0 else 0.0
    return spread if math.isfinite(spread) else 0.0


def _joined(site: Site, nodes: Mapping[str, fx.Node], table: Mapping[fx.Node, Stat]) -> Stat | None:
    """The values of those nodes of a site that are read outside of it."""
    own = {nodes[name] for name in site.nodes if name in nodes}
    read = [node for node in own if any(user not in own for user in node.users)] or list(own)[-1:]
    found = collections.deque(table[node] for node in read if node in table)
    return functools.reduce(Stat.joined, found) if found else None
