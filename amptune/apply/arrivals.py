"""One forward with groups of modules in 16 bits: the dtypes that arrive at functions, and which of them would raise."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from amptune import runtime
from amptune.apply.recorder import ModulePaths
from amptune.capture.names import is_in_place, op_name, spelling_of
from amptune.capture.where import current_place
from amptune.core.formats import Format
from amptune.core.ops import Family, joined_by_autocast, lowered_by_autocast, op_named

Place = tuple[str, str, int]
"""One call of a torch function: path of the running module, op, and how many calls of it came before there."""


@dataclasses.dataclass
class Arrivals:
    """What arrived at the functions that modules without a format of their own called.

    Attributes:
        operands: dtypes of the floating operands of each call.
        computed: calls that compute floating tensors: no casts, no views, no questions such as ``x.shape``.
        one_dtype: calls of ops that raise on mixed dtypes.
        joined: calls of such ops whose operands an autocast region casts to one dtype.
        fp32_only: calls that raised in 16 bits and not in FP32.
        kept: calls of products that autocast lowers, which give FP32.
        lines: the user's line that makes a call of these two kinds, as ``model.py:12``; empty where none does.
    """

    operands: dict[Place, list[torch.dtype]] = dataclasses.field(default_factory=dict)
    computed: set[Place] = dataclasses.field(default_factory=set)
    one_dtype: set[Place] = dataclasses.field(default_factory=set)
    joined: set[Place] = dataclasses.field(default_factory=set)
    fp32_only: set[Place] = dataclasses.field(default_factory=set)
    kept: dict[Place, None] = dataclasses.field(default_factory=dict)
    lines: dict[Place, str] = dataclasses.field(default_factory=dict)


def differ(one: Arrivals, other: Arrivals) -> bool:
    """Whether something else arrives at what computes."""
    return any(one.operands.get(place) != other.operands.get(place) for place in one.computed | other.computed)


def run_lowered(
    model: nn.Module,
    run: Callable[[], object],
    groups: Mapping[str, Collection[str]],
    low: Format,
    how: Mapping[str, str],
    regions: Collection[str],
    chosen: Mapping[str, Collection[str]],
    high: Collection[str],
) -> Arrivals:
    """One forward with all groups low but those of ``high``."""
    own_regions = {path for paths in chosen.values() for path in paths}
    how = {**how, **dict.fromkeys(own_regions, "autocast")}
    table: dict[str, dict[str, Any]] = {path: {"format": low.label, "how": "autocast"} for path in regions}
    for name, paths in groups.items():
        for path in paths:
            table[path] = {"format": Format.FP32.label if name in high else low.label, "how": how.get(path)}
    applied = runtime.apply_plan(model, table)
    running = ModulePaths(model)
    mode = _Tolerant(running, set(table).difference(regions, own_regions))
    try:
        with running.watching(), mode:
            run()
    finally:
        applied.undo()
    return mode.seen


class _Tolerant(TorchFunctionMode):
    """Notes the dtypes that arrive at functions, and lets the run go on where they would raise."""

    def __init__(self, paths: ModulePaths, planned: set[str]) -> None:
        super().__init__()
        self.seen = Arrivals()
        self._paths = paths
        self._planned = planned
        self._count: collections.Counter[tuple[str, str]] = collections.Counter()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = runtime.as_met(args, kwargs or {})
        # A planned module casts for itself.
        if any(path in self._planned for path in self._paths.running):
            return func(*args, **kwargs)
        tensors = [tensor for tensor in runtime.tensors_in((args, kwargs)) if tensor.is_floating_point()]
        if not tensors:
            return func(*args, **kwargs)
        dtypes = [tensor.dtype for tensor in tensors]
        op = op_name(func, args)
        place = self._place(op)
        self.seen.operands[place] = dtypes
        if op_named(op).same_dtype and _is_joined(op, tensors):
            self.seen.joined.add(place)
        elif op_named(op).same_dtype:
            self.seen.one_dtype.add(place)
            self.seen.lines[place] = _line()
            args, kwargs = _with_one_dtype(func, args, kwargs, dtypes)
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if torch.float32 in dtypes and len(set(dtypes)) == 1:
                raise
            result = func(*runtime.cast_all(args, torch.float32), **runtime.cast_all(kwargs, torch.float32))
            self.seen.fp32_only.add(place)
            self.seen.lines[place] = _line()
        if op_named(op).family not in (Family.CAST, Family.VIEW) and _gives_floating(result):
            self.seen.computed.add(place)
        if self._paths.running and lowered_by_autocast(op, tensors[0].device.type) and _is_fp32(tensors, result):
            self.seen.kept[place] = None
        return result

    def _place(self, op: str) -> Place:
        path = self._paths.running[-1] if self._paths.running else ""
        self._count[path, op] += 1
        return path, op, self._count[path, op]


def _is_joined(op: str, tensors: list[torch.Tensor]) -> bool:
    """Whether an autocast region is on that casts the operands to one dtype."""
    device = tensors[0].device.type
    return (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and joined_by_autocast(op, device)
        and all(tensor.dtype != torch.float64 for tensor in tensors)  # which autocast leaves alone
    )


def _is_fp32(tensors: list[torch.Tensor], result: Any) -> bool:
    """Whether a product of FP32 tensors gives FP32."""
    given = [tensor for tensor in runtime.tensors_in(result) if tensor.is_floating_point()]
    return bool(given) and len(tensors) > 1 and all(tensor.dtype == torch.float32 for tensor in (*tensors, *given))


def _gives_floating(result: Any) -> bool:
    return any(tensor.is_floating_point() for tensor in runtime.tensors_in(result))


def _line() -> str:
    """The user's line that makes the running call, with the name of its file alone: a plan is read elsewhere too."""
    reader = current_place(2).reader
    return f"{Path(reader.filename).name}:{reader.line}" if reader else ""


def _with_one_dtype(func: Callable[..., Any], args: Any, kwargs: Any, dtypes: list[torch.dtype]) -> Any:
    if len(set(dtypes)) < 2:
        return args, kwargs
    # What is written to keeps its dtype.
    dtype = args[0].dtype if is_in_place(spelling_of(func)) else torch.float32
    return runtime.cast_all((args, kwargs), dtype)
