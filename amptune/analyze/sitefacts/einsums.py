"""What torch.einsum copies: operands whose dimensions do not fold into the batch, rows and columns of one product.

Torch's own einsum says so, run on tensors without storage: every reshape of an operand that is no view is a clone
(sumproduct_pair of aten/src/ATen/native/Linear.cpp), and so it is of the gradients on their way back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

Layout = tuple[tuple[int, ...], tuple[int, ...], bool]
"""Shape, strides, and whether it has a gradient."""


def copied(equation: object, operands: Sequence[tuple[fx.Node, bool]]) -> dict[str, int]:
    """Elements that an einsum copies: ``rows`` and ``turned`` forward, ``rows_back`` and ``turned_back`` backward.

    Those of ``turned`` are read across rows. Empty where nothing is copied or shapes are not known.

    Args:
        equation: as the call has it.
        operands: each with whether it has a gradient.
    """
    layouts = [_layout(node.meta.get("val"), trained) for node, trained in operands]
    known = [layout for layout in layouts if layout is not None]
    if not isinstance(equation, str) or len(known) < len(layouts):
        return {}
    return dict(_copied(equation, tuple(known)))


def _layout(value: Any, trained: bool) -> Layout | None:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_complex():
        return None
    if not all(isinstance(each, int) for each in (*value.shape, *value.stride())):
        return None
    return tuple(value.shape), tuple(value.stride()), trained


class _Clones(TorchDispatchMode):
    """Counts the elements of clones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, int] = {}
        self.suffix = ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        if func.overloadpacket is torch.ops.aten.clone:
            tensor: torch.Tensor = args[0]
            kind = ("rows" if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else "turned") + self.suffix
            self.found[kind] = self.found.get(kind, 0) + tensor.numel()
        return func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=1024)
def _copied(equation: str, layouts: tuple[Layout, ...]) -> tuple[tuple[str, int], ...]:
    operands = [
        torch.empty_strided(shape, strides, device="meta").requires_grad_(trained)
        for shape, strides, trained in layouts
    ]
    clones = _Clones()
    try:
        with torch.enable_grad(), clones:
            result = torch.einsum(equation, *operands)
            clones.suffix = "_back"
            if result.requires_grad:
                result.backward(torch.empty_like(result, memory_format=torch.contiguous_format))
    except RuntimeError:
        return ()
    return tuple(clones.found.items())
