"""Where each module of a model was built, for calls that no line of the user's makes: a model that is a Sequential."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from amptune.capture.where import Position, construction_place

_NOTE = "_amptune_built_at"
"""Kept on the module, so that copies of it (EMA, repeated blocks) have it too."""


@contextlib.contextmanager
def construction_noted() -> Iterator[None]:
    """Note for each module that is made inside the line that makes it."""
    module_class: Any = nn.Module
    original = module_class.__init__

    def construct(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(module, *args, **kwargs)
        vars(module)[_NOTE] = construction_place(module, skip=2)

    module_class.__init__ = construct
    try:
        yield
    finally:
        module_class.__init__ = original


def built_at(module: nn.Module) -> Position | None:
    """The line that made a module; ``None`` where it was not seen."""
    found = vars(module).get(_NOTE)
    return found if isinstance(found, Position) else None
