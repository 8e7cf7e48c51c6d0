"""Products that a forward computes itself, as calls that can be timed and looked at like those of a layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from amptune.apply.recorder import ModulePaths
from amptune.capture.names import op_name
from amptune.capture.where import Position, current_place

Place = tuple[str, str, Position]
"""Module path, op, and where its call stands."""
Seen = Callable[[str, "FunctionModule", tuple[Any, ...], dict[str, Any], Any], None]
"""Gets a site, its function, the arguments and the result."""


def is_function(site: str) -> bool:
    """Whether a site is a function in the forward of a module."""
    return "#" in site


class FunctionModule(nn.Module):
    """A torch function as a layer without parameters: what it multiplies with comes as an argument."""

    def __init__(self, function: Callable[..., Any], op: str) -> None:
        super().__init__()
        self.function = function
        self.op = op

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the function."""
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        """The op's name."""
        return self.op


@contextlib.contextmanager
def watching(model: nn.Module, sites: Collection[str], places: Mapping[Place, str], seen: Seen) -> Iterator[None]:
    """Show ``seen`` each call of the sites inside; nothing is watched where there are none."""
    if not sites:
        yield
        return
    paths = ModulePaths(model)
    with paths.watching(), _Calls(paths, _wanted(sites), lambda place, *call: seen(places[place], *call), places):
        yield


def places_of(model: nn.Module, sites: Collection[str], run: Callable[[], object]) -> dict[Place, str]:
    """Where the sites are called, as a run shows: ``path#op.n`` counts calls in the order in which they end."""
    if not sites:
        return {}
    found: dict[tuple[str, str], set[Position]] = {}

    def note(place: Place, *_: Any) -> None:
        found.setdefault(place[:2], set()).add(place[2])

    paths = ModulePaths(model)
    with paths.watching(), _Calls(paths, _wanted(sites), note):
        run()
    return {
        (path, op, position): site
        for (path, op), positions in found.items()
        for number, position in enumerate(sorted(positions, key=_order))
        if (site := f"{path}#{op}.{number}") in sites
    }


def _wanted(sites: Collection[str]) -> set[tuple[str, str]]:
    parts = (site.partition("#") for site in sites)
    return {(path, op.rpartition(".")[0]) for path, _, op in parts}


def _order(position: Position) -> tuple[Any, ...]:
    """As a capture numbers them."""
    return (position.filename, position.end_line, position.end_column, -position.line, -position.column)


class _Calls(TorchFunctionMode):
    """Tells of the calls of some ops in the forwards of some modules."""

    def __init__(
        self,
        paths: ModulePaths,
        wanted: Collection[tuple[str, str]],
        told: Callable[..., None],
        places: Mapping[Place, str] | None = None,
    ) -> None:
        super().__init__()
        self._paths = paths
        self._wanted = wanted
        self._told = told
        self._places = places

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        path = self._paths.running[-1] if self._paths.running else None
        if path is None or not any(path == other for other, _ in self._wanted):
            return result
        op = op_name(func, args)
        position = current_place(1).origin if (path, op) in self._wanted else None
        if position is not None and (self._places is None or (path, op, position) in self._places):
            self._told((path, op, position), FunctionModule(func, op), args, kwargs, result)
        return result
