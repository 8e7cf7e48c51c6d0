"""One name for each op: maps torch functions, tensor methods, operators and aten overloads to the op table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from amptune.capture.aliases import IGNORED_PREFIXES, OP_OF_ALIAS, OP_OF_PREFIX
from amptune.core.spellings import op_of_name

_CONVOLUTIONS = {"convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution"}
_NOT_IN_PLACE = {"__int__", "__invert__", "__index__", "__init__", "__iter__"}


@functools.cache
def op_of_spelling(spelling: str) -> str:
    """The table's name for a spelling (``__rsub__``, ``softmax_``, ``_softmax``); the bare spelling when unknown."""
    bare = spelling.strip("_")
    known = op_of_name(spelling) or op_of_name(bare) or OP_OF_ALIAS.get(bare)
    if known is not None:
        return known
    for prefix, op in OP_OF_PREFIX.items():
        if bare.startswith(prefix):
            return op
    for prefix in IGNORED_PREFIXES:
        if bare.startswith(prefix):
            return op_of_spelling(bare.removeprefix(prefix))
    return bare


def spelling_of(function: Callable[..., Any]) -> str:
    """The bare name of what a TorchFunctionMode is given: a function, method, operator, overload or property."""
    schema = getattr(function, "_schema", None)
    if schema is not None:
        return str(schema.name).split("::")[-1]
    name = str(getattr(function, "__name__", type(function).__name__))
    if name in {"__get__", "__set__"}:
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return name


def op_name(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The op of a call, by its name and, where one name serves several ops, by its arguments."""
    spelling = spelling_of(function)
    if spelling in {"__getitem__", "getitem"}:
        return "index" if _indexes_by_tensor(args[1]) else "slice"
    if spelling in {"__setitem__", "setitem"}:
        return "index_put" if _indexes_by_tensor(args[1]) else "copy"
    if spelling.strip("_") in _CONVOLUTIONS:
        return _convolution(args)
    return op_of_spelling(spelling)


def _convolution(args: tuple[Any, ...]) -> str:
    """aten.convolution(input, weight, bias, stride, padding, dilation, transposed, ...) by its dimensions."""
    transposed = "_transpose" if len(args) > 6 and args[6] is True else ""
    return f"conv{transposed}{len(args[3])}d"


def _indexes_by_tensor(index: Any) -> bool:
    """Whether an index gathers (tensors, lists), rather than slicing a view out."""
    if isinstance(index, tuple):
        return any(_indexes_by_tensor(item) for item in index)
    return isinstance(index, list | torch.Tensor)


def written_by(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """The tensors that a call writes into: several for ``out=(values, indices)`` and ``_foreach_mul_``."""
    written = kwargs.get("out")
    if written is None:
        writes = is_in_place(spelling_of(func)) or kwargs.get("inplace") is True or _sets_data(func)
        written = args[0] if writes and args else ()
    several = written if isinstance(written, tuple | list) else (written,)
    return tuple(each for each in several if isinstance(each, torch.Tensor))


def is_in_place(spelling: str) -> bool:
    """``add_``, ``__iadd__``, ``__setitem__``."""
    if spelling.startswith("__") and spelling.endswith("__"):
        return spelling == "__setitem__" or (spelling.startswith("__i") and spelling not in _NOT_IN_PLACE)
    return spelling.endswith("_") or spelling == "setitem"


def _sets_data(func: Callable[..., Any]) -> bool:
    """``x.data = y``."""
    return getattr(func, "__name__", "") == "__set__" and spelling_of(func) == "data"
