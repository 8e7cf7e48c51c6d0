"""Arguments of ops and settings of layers, by torch's names, for the rules to read."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from amptune.core.ops import OPS, Family

_SCALAR_OPERANDS = {Family.POINTWISE, Family.SENSITIVE, Family.GEMM}
_SKIPPED = {"self", "input", "weight", "bias", "running_mean", "running_var", "training", "inplace", "out", "generator"}
_WITH_STATISTICS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
"""Norms that may divide by other numbers than those of their input -> the argument that says so."""
_SKIPPED_SETTINGS = {"training", "call_super_init", "dump_patches"}


def named_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by torch's names, as far as they are known."""
    kinds = tuple(_kind(argument) for argument in args)
    return dict(zip(_names(function, kinds), args, strict=False)) | dict(kwargs)


def _kind(argument: Any) -> str:
    return "tensor" if isinstance(argument, torch.Tensor) else "number" if _is_number(argument) else ""


def op_attrs(op: str, named: Mapping[str, Any], args: Sequence[Any]) -> dict[str, Any]:
    """Literal arguments of one call: by name, and positional numbers of arithmetic as ``scalars``."""
    found = {
        name: plain
        for name, value in named.items()
        if name not in _SKIPPED and not name.startswith("_") and (plain := _plain(value)) is not None
    }
    if op in _WITH_STATISTICS and named.get(_WITH_STATISTICS[op], op == "instance_norm") is False:
        found["fixed_statistics"] = True
    if op == "einsum" and args and isinstance(args[0], str):
        found["equation"] = args[0]
    entry = OPS.get(op)
    scalars = {index: value for index, value in enumerate(args) if _is_number(value)}
    if entry is not None and entry.family in _SCALAR_OPERANDS and scalars:
        found = {name: value for name, value in found.items() if name != "other"}
        found["scalars"] = scalars
    return found


def module_attrs(module: nn.Module) -> dict[str, Any]:
    """Literal settings of a layer (eps, kernel_size, groups, num_heads ...), and whether it has a bias."""
    found = {
        name: plain
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _SKIPPED_SETTINGS and (plain := _plain(value)) is not None
    }
    if isinstance(module, _BatchNorm | _InstanceNorm) and not module.training and module.running_mean is not None:
        found["fixed_statistics"] = True
    if "bias" in module._parameters:
        found["bias"] = module._parameters["bias"] is not None
    return found


def _plain(value: Any) -> Any:
    """A value that JSON can hold; None for what cannot be, or says nothing."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple | list) and value and all(isinstance(item, bool | int | float | str) for item in value):
        return list(value)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.lru_cache(maxsize=4096)
def _names(target: Callable[..., Any], kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Parameter names of what a node calls: from its schema, its Python signature, or the aten op of its name."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return tuple(argument.name for argument in schema.arguments)
    if inspect.isfunction(target):
        with contextlib.suppress(ValueError):  # a Python wrapper around a builtin
            parameters = inspect.signature(target).parameters.values()
            return tuple(
                "_" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name for parameter in parameters
            )
    return _schema_names(str(getattr(target, "__name__", "")), kinds)


def _schema_names(name: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Argument names of the aten overload of ``name`` that takes such positional arguments, if there is one; one for
    tensors rather than for lists and numbers of TorchScript, as ``sort`` has. ``x.max(y)`` and ``x.max(-1)`` differ."""
    bare = name.strip("_") if name.startswith("__") else name
    packet = getattr(torch.ops.aten, bare, None) if bare else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return ()
    fitting: list[tuple[bool, int, int, tuple[str, ...]]] = []
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        positional = [argument for argument in schema.arguments if not argument.kwarg_only]
        names = tuple(argument.name for argument in positional)
        if overload.endswith("out") or "dimname" in overload or len(names) < len(kinds):
            continue
        unlike = sum(
            (str(argument.type) == "Tensor") != (kind == "tensor") or str(argument.type) == "bool"
            for argument, kind in zip(positional, kinds, strict=False)
            if kind
        )
        other = not positional or str(positional[0].type) != "Tensor"
        fitting.append((other, unlike, len(names), names))
    return min(fitting, key=lambda each: each[:3])[3] if fitting else ()
