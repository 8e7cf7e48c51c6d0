"""Which tensor's dtype a cast follows: ``x.to(y.dtype)``, also through ``dtype = y.dtype`` and through parameters.

A dtype is the same object wherever it is read, so values do not tell. The source does: the call's argument is an
attribute ``.dtype``, or a name or attribute that such an attribute was assigned to, or a parameter that the caller gave
one of these; and the run has noted what was read there last.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import linecache
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from amptune.capture.target import tensors_in
from amptune.capture.where import Position, Trail, current_place, position_of

STORED = 0
"""Stands for the call that made a tensor, where none did: a parameter, a buffer or a tensor of the batch."""


class DtypeReads:
    """What ``tensor.dtype`` was read of during one run, by the place in the source."""

    def __init__(self) -> None:
        self._made: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is good only as long as its tensor lives
        self._last: dict[Position, int] = {}

    def made(self, result: Any, number: int) -> None:
        """Note that a call gave these tensors."""
        for tensor in tensors_in(result):
            self._made[id(tensor)] = number
            self._kept.append(tensor)

    def read(self, tensor: torch.Tensor) -> None:
        """Note that the running code reads the dtype of a tensor."""
        place = current_place().origin
        if place is not None:
            self._last[place] = self._made.get(id(tensor), STORED)

    def followed(self, place: Position | None, arguments: Sequence[Any], trail: Trail = ()) -> int | None:
        """The number of the call whose result's dtype the call at ``place`` is given; ``None`` where nothing says.

        Args:
            place: the line of the call.
            arguments: what it is given.
            trail: the running lines, the innermost first, for a dtype that the function at ``place`` was given itself.
        """
        if place is None or not any(isinstance(each, torch.dtype) for each in arguments):
            return None
        found = [self._last[read] for read in _reads_behind(place, trail) if read in self._last]
        return found[0] if len(set(found)) == 1 else None


@dataclasses.dataclass
class _Source:
    """The calls of a file by the place where they end, and of each call's function the dtypes that it gives names."""

    calls: dict[tuple[int, int], list[ast.Call]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    named: dict[ast.Call, Mapping[str, list[ast.Attribute]]] = dataclasses.field(default_factory=dict)
    parameters: dict[ast.Call, list[str]] = dataclasses.field(default_factory=dict)


_sources: dict[str, tuple[Sequence[str], _Source]] = {}


def _source_of(filename: str) -> _Source:
    lines = linecache.getlines(filename)
    known = _sources.get(filename)
    if known is None or known[0] is not lines:
        known = _sources[filename] = lines, _read("".join(lines))
    return known[1]


def _read(text: str) -> _Source:
    source = _Source()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # code made at run time
        return source
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.Lambda):
            _read_function(function, source)
    return source


def _read_function(function: ast.FunctionDef | ast.Lambda, source: _Source) -> None:
    arguments = function.args
    parameters = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    named: dict[str, list[ast.Attribute]] = collections.defaultdict(list)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target, value in _assigned(node):
                if isinstance(target, ast.Name | ast.Attribute) and _is_dtype(value):
                    named[ast.unparse(target)].append(value)  # type: ignore[arg-type]
        elif isinstance(node, ast.Call):
            if node not in source.named:
                source.calls[node.end_lineno or 0, node.end_col_offset or 0].append(node)
            source.named[node] = named  # of the innermost function, which is walked last
            source.parameters[node] = parameters


def _assigned(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What is assigned to what, one by one: ``a, b = c, d`` too."""
    for target in node.targets:
        pair = target, node.value
        if all(isinstance(each, ast.Tuple) for each in pair) and len({len(each.elts) for each in pair}) == 1:  # type: ignore[attr-defined]
            yield from zip(*(each.elts for each in pair), strict=True)  # type: ignore[attr-defined]
        else:
            yield pair


def _is_dtype(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "dtype"


def _reads_behind(place: Position, trail: Trail) -> Iterator[Position]:
    """Where the dtype among the arguments of the call at ``place`` is read from a tensor."""
    places = [place]
    if trail and position_of(trail[0]) == place:
        places += [position_of(step) for step in trail[1 : _CALLERS + 1]]
    source = _source_of(place.filename)
    for call in source.calls.get((place.end_line, place.end_column), ()):
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            yield from _reads_of(argument, call, places)


_CALLERS = 4
"""How many callers up a dtype is followed through parameters."""


def _reads_of(argument: ast.expr, call: ast.Call, places: Sequence[Position]) -> Iterator[Position]:
    """Where an argument of a call is read from a tensor; ``places`` are the lines of the call and of its callers."""
    if not isinstance(argument, ast.Name | ast.Attribute):
        return
    source = _source_of(places[0].filename)
    named = source.named[call].get(ast.unparse(argument), ())
    if before := [each for each in named if each.lineno <= call.lineno]:
        yield _position(places[0].filename, before[-1])
    elif _is_dtype(argument):
        yield _position(places[0].filename, argument)
    elif isinstance(argument, ast.Name) and argument.id in source.parameters[call] and len(places) > 1:
        yield from _reads_of_parameter(argument.id, source.parameters[call], places[1:])


def _reads_of_parameter(name: str, parameters: Sequence[str], places: Sequence[Position]) -> Iterator[Position]:
    """Where what a caller gives for a parameter is read from a tensor."""
    index = parameters.index(name) - (parameters[0] in ("self", "cls"))
    for call in _source_of(places[0].filename).calls.get((places[0].end_line, places[0].end_column), ()):
        given = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
        if given is None and index < len(call.args) and not any(isinstance(each, ast.Starred) for each in call.args):
            given = call.args[index]
        if given is not None:
            yield from _reads_of(given, call, places)


def _position(filename: str, node: ast.expr) -> Position:
    return Position(filename, node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
