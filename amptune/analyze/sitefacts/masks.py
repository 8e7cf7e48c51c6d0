"""What the numbers of a constant mask say: which lines it keeps, and whether it is a triangle."""

from __future__ import annotations

import torch

_MASKED = -1e3
"""What is added to a score that is masked is below this."""


def axes_kept(value: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes, counted from the last as -1, along which every line has a number that is not zero, and those along which
    every line has a zero."""
    if value.dim() == 0 or value.is_complex():
        return (), ()
    kept = value != 0
    if value.numel() and bool(kept.all()):
        return tuple(range(-value.dim(), 0)), ()
    axes = range(-value.dim(), 0)
    return tuple(axis for axis in axes if bool(kept.any(axis).all())), tuple(
        axis for axis in axes if not bool(kept.all(axis).any())
    )


def triangles(value: torch.Tensor) -> tuple[bool, bool]:
    """Whether a mask holds nowhere above the diagonal, and whether it holds everywhere above it."""
    if not _is_square(value) or value.is_complex():
        return False, False
    holds = value != 0
    above = torch.ones_like(holds).triu(1)
    return not bool((holds & above).any()), bool((holds | ~above).all())


def is_causal(value: torch.Tensor) -> bool:
    """Whether a mask of attention keeps what is on and below the diagonal, and nothing else."""
    if not _is_square(value):
        return False
    kept = value if value.dtype is torch.bool else value > _MASKED
    return bool((kept == torch.ones_like(kept).tril()).all())


def _is_square(value: torch.Tensor) -> bool:
    return value.dim() >= 2 and value.shape[-1] == value.shape[-2]
