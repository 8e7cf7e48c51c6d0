"""Checks the file that the user takes home: its model must do, bit for bit, what the measured plan did."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amptune.apply.handoff import patched_spec
from amptune.capture import load_target
from amptune.capture.flow import has_channels_last
from amptune.capture.prepare import run_lazy_layers
from amptune.capture.target import tensors_in
from amptune.tune.running.recipes import Candidate, backend_flags
from amptune.tune.running.state import Attributes, set_state
from amptune.tune.running.training import Workbench, loss_of_output, seed_everything, training

REPEATS = 3
"""Runs of the plan that show how far its kernels let it differ from itself, where they do."""
OWN_DIFFERENCE = 4.0
"""A file may differ from the plan by this many times the most that the plan differs from itself."""


@dataclasses.dataclass
class _Run:
    """One forward: its tensors, the loss last, and (module, what went in and out: formats, shapes, memory formats)."""

    tensors: list[torch.Tensor]
    calls: list[tuple[str, str]]


def compare_emitted(bench: Workbench, path: Path, candidate: Candidate, batch: Any, seed: int) -> list[str]:
    """Differences between the emitted model and the applied plan; empty when they agree.

    Compared are names, shapes and dtypes of the state, and the output and loss of one forward in train mode from equal
    weights and random state: bit for bit, or, where the plan's own kernels do not give the same twice, as closely as
    the plan repeats itself, with every layer's formats and memory formats the same.
    """
    seed_everything(seed)
    emitted = load_target(patched_spec(bench.target, path))
    model = emitted.make_model().to(bench.device.torch)
    run_lazy_layers(emitted, model, lambda: batch)
    with training(bench, candidate):
        differences = [
            f"state_dict entry {name}: {theirs}, was {ours}"
            for name, ours, theirs in _state_differences(bench.model.state_dict(), model.state_dict())
        ]
    if differences:
        return differences
    set_state(model, bench.initial)
    model.train()
    with backend_flags(candidate.tf32):
        found = _run(model, seed, lambda: emitted.call(model, batch), lambda out: emitted.loss(out, batch))

    def plan() -> _Run:
        def loss(output: Any) -> torch.Tensor:
            return loss_of_output(bench, candidate, output, batch)

        with training(bench, candidate):
            return _run(bench.model, seed, lambda: bench.target.call(bench.model, batch), loss)

    expected = plan()
    if differences := _differences(found, expected):
        return differences
    far = _distances(found, expected, plan)
    return far if far and _distance(found, _run_anew(bench, candidate, batch, seed)) else []


def _run_anew(bench: Workbench, candidate: Candidate, batch: Any, seed: int) -> _Run:
    """The plan on a model of the user's file loaded once more, as the patched file is: what a file keeps beside the
    model (a criterion with running means, a queue of features) is as new in both, and has seen the trials in ``bench``.
    """
    seed_everything(seed)
    target = load_target(bench.target.spec, source=bench.source)
    model = target.make_model().to(bench.device.torch)
    model.train()
    run_lazy_layers(target, model, lambda: batch)
    anew = dataclasses.replace(bench, target=target, model=model, attributes=Attributes(model), _targets={})
    with training(anew, candidate):
        return _run(
            model, seed, lambda: target.call(model, batch), lambda out: loss_of_output(anew, candidate, out, batch)
        )


def _differences(found: _Run, expected: _Run) -> list[str]:
    """Results of another dtype or shape; else the first layer that ran in other formats."""
    names = [*(f"output {index}" for index in range(len(found.tensors) - 1)), "loss"]
    changed = [
        f"{name}: {_describe(a)}, the plan gave {_describe(b)}"
        for name, a, b in zip(names, found.tensors, expected.tensors, strict=True)
        if a.dtype != b.dtype or a.shape != b.shape
    ]
    if changed:
        return changed
    calls = zip(found.calls, expected.calls, strict=False)
    return next(([f"{name}: {was}, in the plan {should}"] for (name, was), (_, should) in calls if was != should), [])


def _distances(found: _Run, expected: _Run, plan: Callable[[], _Run]) -> list[str]:
    """How far the results are off, where that is more than the plan differs from itself."""
    distance = _distance(found, expected)
    if distance == 0.0:
        return []
    own = max(_distance(plan(), expected) for _ in range(REPEATS - 1))
    if distance <= OWN_DIFFERENCE * own:
        return []
    repeats = f"the plan repeats itself within {own:.1e}" if own else "the plan repeats itself bit for bit"
    return [f"the output is off by {distance:.1e} of its size; {repeats}"]


def _run(model: nn.Module, seed: int, forward: Callable[[], Any], loss_of: Callable[[Any], torch.Tensor]) -> _Run:
    calls: list[tuple[str, str]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: Any, output: Any) -> None:
            given, made = (", ".join(map(_layout, tensors_in(each))) for each in (arguments, output))
            calls.append((name, f"{given} -> {made}"))

        return hook

    leaves = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.children(), None) is None and not isinstance(module, torch.jit.ScriptModule)  # takes no hooks
    ]
    handles = [module.register_forward_hook(keep(name)) for name, module in leaves]
    try:
        seed_everything(seed)
        output = forward()
        return _Run([*tensors_in(output), loss_of(output)], calls)
    finally:
        for handle in handles:
            handle.remove()


def _distance(one: _Run, other: _Run) -> float:
    """The largest relative distance of a tensor of two runs; 0.0 where they agree bit for bit, NaNs as well."""
    return max(
        (_relative(a.detach(), b.detach()) for a, b in zip(one.tensors, other.tensors, strict=True)), default=0.0
    )


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    if torch.equal(one, other):
        return 0.0
    if not (one.is_floating_point() or one.is_complex()):
        return math.inf
    if torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True):
        return 0.0
    size = torch.linalg.vector_norm(other.to(torch.promote_types(other.dtype, torch.float32)))
    return float(torch.linalg.vector_norm((one - other).to(size.dtype)) / size) if size > 0 else math.inf


def _layout(tensor: torch.Tensor) -> str:
    return f"{_describe(tensor)}{' in channels_last' if has_channels_last(tensor) else ''}"


def _state_differences(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> Iterator[tuple[str, str, str]]:
    for name in ours.keys() | theirs.keys():
        a, b = _describe(ours.get(name)), _describe(theirs.get(name))
        if a != b:
            yield name, a, b


def _describe(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
