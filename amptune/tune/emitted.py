"""Checks the file that the user takes home: its model must do, bit for bit, what the measured plan did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from amptune.capture import load_target
from amptune.tune.options import TuneOptions
from amptune.tune.recipes import Candidate, backend_flags
from amptune.tune.training import Workbench, loss_of_output, seed_everything, training


def compare_emitted(bench: Workbench, path: Path, candidate: Candidate, batch: Any, options: TuneOptions) -> list[str]:
    """Differences between the emitted model and the applied plan; empty when they agree.

    Compared are names, shapes and dtypes of the state, and the output and loss of one forward in train mode from equal
    weights and random state.
    """
    # A package's callable is wrapped in a file with make_model(); a class of the user's file keeps its name.
    suffix = options.target.text.partition(":")[2] if bench.target.path is not None else ""
    spec = dataclasses.replace(options.target, text=f"{path}:{suffix}" if suffix else str(path))
    emitted = load_target(spec)
    model = emitted.make_model().to(bench.device.torch)
    with training(bench, candidate):
        measured = bench.model.state_dict()
        differences = [
            f"state_dict entry {name}: {theirs}, was {ours}"
            for name, ours, theirs in _state_differences(measured, model.state_dict())
        ]
    if differences:
        return differences
    model.load_state_dict(bench.initial)
    model.train()
    with backend_flags(candidate.tf32):
        seed_everything(options.seed)
        output = emitted.call(model, batch)
        found = [*_tensors(output), emitted.loss(output, batch)]
    with training(bench, candidate):
        seed_everything(options.seed)
        output = bench.target.call(bench.model, batch)
        expected = [*_tensors(output), loss_of_output(bench, candidate, output, batch)]
    return [
        f"{'loss' if index == len(found) - 1 else f'output {index}'}: {_describe(a)}, the plan gave {_describe(b)}"
        for index, (a, b) in enumerate(zip(found, expected, strict=True))
        if a.dtype != b.dtype or not torch.equal(a, b)
    ]


def _state_differences(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> Iterator[tuple[str, str, str]]:
    for name in ours.keys() | theirs.keys():
        a, b = _describe(ours.get(name)), _describe(theirs.get(name))
        if a != b:
            yield name, a, b


def _describe(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
