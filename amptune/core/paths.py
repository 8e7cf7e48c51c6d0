"""Paths of modules, as ``blocks.0.attn``; the model itself has the empty one."""

from __future__ import annotations

from collections.abc import Collection, Iterator


def upwards(path: str) -> Iterator[str]:
    """The path, and those of the modules that hold it, the model last."""
    parts = path.split(".") if path else []
    return (".".join(parts[:count]) for count in range(len(parts), -1, -1))


def is_within(path: str, paths: Collection[str]) -> bool:
    """Whether a module is one of these, or in one of them."""
    return any(above in paths for above in upwards(path))
