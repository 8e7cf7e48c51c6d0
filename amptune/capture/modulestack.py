"""Which module is running: a stack kept by wrapping ``nn.Module.__call__`` while a forward is recorded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules import transformer

from amptune.capture.built import built_at
from amptune.capture.execute import readable_module
from amptune.capture.where import Place, current_place

_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    transformer.Transformer,
    transformer.TransformerEncoder,
    transformer.TransformerDecoder,
    transformer.TransformerEncoderLayer,
    transformer.TransformerDecoderLayer,
    nn.AdaptiveLogSoftmaxWithLoss,
)
_LEAF_PACKAGES = ("torch.nn.modules.", "torch.nn.quantized.", "torch.nn.qat.", "torch.ao.nn.")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one site: a layer of torch.nn, or a subclass that keeps the layer's forward.

    Such a subclass is a parametrised layer, or one that only initialises its weights in its own way.
    """
    for cls in type(module).__mro__:
        if cls in _CONTAINERS or cls is nn.Module:
            return False
        if cls.__module__.startswith(_LEAF_PACKAGES):
            return _forward_of(type(module)) is _forward_of(cls)
    return False


def _forward_of(cls: type) -> Any:
    return getattr(cls, "forward", None)


def type_name(module: nn.Module) -> str:
    """Fully qualified class of a module; torch.nn's by their public name."""
    cls = type(module)
    if getattr(nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    return f"{readable_module(cls.__module__)}.{cls.__qualname__}"


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """One running call of a module of the model: its path, class, where it is called, and which call it is.

    Where no line of the user's calls it, its place is where it was built.
    """

    path: str
    type_name: str
    leaf: bool
    number: int
    place: Place
    module: nn.Module


class ModuleStack:
    """The calls of ``model``'s modules that are running now, outermost first.

    Attributes:
        calls: those that are running.
        count: how many have begun.
        failed: the innermost call that raised, with its arguments.
        finished: told of each call that returned, with arguments and result.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[ModuleCall] = []
        self.failed: tuple[ModuleCall, tuple[Any, ...], dict[str, Any]] | None = None
        # torch.export calls modules through stand-ins that share their __dict__.
        self._known = {id(vars(module)): (path, module) for path, module in model.named_modules()}
        self.count = 0
        self.finished: Callable[[ModuleCall, tuple[Any, ...], dict[str, Any], Any], None] = lambda *ignored: None

    @property
    def leaf(self) -> ModuleCall | None:
        """The outermost leaf module that is running."""
        return next((call for call in self.calls if call.leaf), None)

    @property
    def holder(self) -> ModuleCall | None:
        """The innermost running module."""
        return self.calls[-1] if self.calls else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Follow all module calls inside."""
        module_class: Any = nn.Module
        original = module_class.__call__
        stack = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            known = stack._known.get(id(vars(module)))
            if known is None:
                return original(module, *args, **kwargs)
            with stack._running(*known, args, kwargs) as entry:
                result = original(module, *args, **kwargs)
            stack.finished(entry, args, kwargs, result)
            return result

        module_class.__call__ = call
        try:
            yield
        finally:
            module_class.__call__ = original

    @contextlib.contextmanager
    def _running(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[ModuleCall]:
        self.count += 1
        place = current_place(4)
        if place.reader is None:
            place = Place(place.origin, built_at(module))
        entry = ModuleCall(path, type_name(module), is_leaf(module), self.count, place, module)
        self.calls.append(entry)
        try:
            yield entry
        except Exception:
            self.failed = self.failed or (entry, args, kwargs)
            raise
        finally:
            self.calls.pop()
