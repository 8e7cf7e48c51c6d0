"""The allocation as an integer program for HiGHS (scipy.optimize.milp): one choice for each group, casts linearised.

Every group has one binary for each choice. The format of a tensor that several groups write is one-hot too: BF16 (or
FP16) when all of them are, FP32 otherwise. A link is a small transport from the formats of its sources to those of its
readers: as tight a relaxation as one link has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from amptune.core.choice import Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.tables import EDGE_FORMATS
from amptune.tune.allocation.caps import Caps

if TYPE_CHECKING:
    from amptune.tune.allocation.allocate import Link, Problem, Values

TIME_LIMIT = 5.0
"""Seconds for one program; what was found by then is used."""
_HALVES = (Format.BF16, Format.FP16)

_LARGEST_COST = 1e3

Terms = dict[int, float]
"""A linear expression: index of a variable -> factor."""
_CONSTANT = -1
"""Index of the constant term."""


def solve(
    problem: Problem, weight: float = 0.0, caps: Caps | None = None, time_limit: float = TIME_LIMIT
) -> dict[str, Choice] | None:
    """The best legal assignment; None where the solver found none within ``time_limit`` seconds."""
    caps = caps or Caps()
    program = _Program()
    chosen = {
        name: {
            choice: program.variable(cost + weight * problem.errors.get(name, {}).get(choice, 0.0), binary=True)
            for choice, cost in values.items()
            if math.isfinite(cost)
        }
        for name, values in problem.times.items()
    }
    for variables in chosen.values():
        program.equal(dict.fromkeys(variables.values(), 1.0), 1.0)
    formats = _Formats(program, chosen)
    for link in problem.links:
        _price(program, formats, link)
    for names in problem.meets:
        _keep_apart(program, formats, names)
    for values, limit in ((problem.memory, caps.bytes), (problem.errors, caps.error)):
        if math.isfinite(limit):
            # In units of the limit: bytes and errors are far from the sizes that a solver's tolerances are made for.
            program.at_most(_sum_of(values, chosen, max(limit, 1e-300)), 1.0)
    solution = program.solve(time_limit)
    if solution is None:
        return None
    return {name: max(variables, key=lambda c: solution[variables[c]]) for name, variables in chosen.items()}


def _sum_of(values: Values, chosen: Mapping[str, Mapping[Choice, int]], unit: float) -> Terms:
    return {
        index: values.get(name, {}).get(choice, 0.0) / unit
        for name, variables in chosen.items()
        for choice, index in variables.items()
    }


class _Program:
    """Variables in [0, 1] with their costs, and the rows that bind them."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.binary: list[bool] = []
        self.rows: list[tuple[Terms, float, float]] = []

    def variable(self, cost: float = 0.0, *, binary: bool = False) -> int:
        self.costs.append(cost)
        self.binary.append(binary)
        return len(self.costs) - 1

    def equal(self, terms: Mapping[int, float], value: float) -> None:
        self._row(terms, value, value)

    def at_most(self, terms: Mapping[int, float], value: float) -> None:
        self._row(terms, -math.inf, value)

    def _row(self, terms: Mapping[int, float], low: float, high: float) -> None:
        constant = terms.get(_CONSTANT, 0.0)
        self.rows.append(({i: f for i, f in terms.items() if i != _CONSTANT}, low - constant, high - constant))

    def solve(self, time_limit: float) -> np.ndarray | None:
        entries = [(row, *item) for row, (terms, _, _) in enumerate(self.rows) for item in terms.items()]
        rows, columns, factors = (np.array(part) for part in zip(*entries, strict=True))
        matrix = coo_array((factors, (rows, columns)), shape=(len(self.rows), len(self.costs))).tocsr()
        lows, highs = ([row[side] for row in self.rows] for side in (1, 2))
        costs = np.array(self.costs)
        found = milp(
            # The solver's tolerances are absolute, and costs may be microseconds.
            costs * (_LARGEST_COST / max(float(costs.max()), 1e-300)),
            integrality=np.array(self.binary, dtype=int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, lows, highs),
            options={"time_limit": time_limit, "mip_rel_gap": 0.0},
        )
        solution: np.ndarray | None = found.x
        return solution


class _Formats:
    """Linear expressions for "this side of a link has that format"; those of several groups get variables once."""

    def __init__(self, program: _Program, chosen: Mapping[str, Mapping[Choice, int]]) -> None:
        self.program = program
        self.chosen = chosen
        self.known: dict[frozenset[str], dict[Format, Terms]] = {}

    def of(self, side: frozenset[str]) -> dict[Format, Terms]:
        if INPUT in side:
            return {Format.FP32: {_CONSTANT: 1.0}}
        if len(side) == 1:
            return self.of_group(next(iter(side)))
        if side not in self.known:
            self.known[side] = self._promoted(side)
        return self.known[side]

    def of_group(self, name: str) -> dict[Format, Terms]:
        terms: dict[Format, Terms] = {}
        for choice, index in self.chosen[name].items():
            terms.setdefault(choice.output_format, {})[index] = 1.0
        return terms

    def _promoted(self, side: frozenset[str]) -> dict[Format, Terms]:
        members = [self.of_group(name) for name in sorted(side)]
        found: dict[Format, Terms] = {Format.FP32: {_CONSTANT: 1.0}}
        for half in _HALVES:
            if not all(half in member for member in members):
                continue
            everywhere = self.program.variable()
            everyone: Terms = {everywhere: -1.0}
            for member in members:
                self.program.at_most({everywhere: 1.0} | {i: -f for i, f in member[half].items()}, 0.0)
                everyone |= member[half]
            self.program.at_most(everyone, len(members) - 1.0)
            found[half] = {everywhere: 1.0}
            found[Format.FP32][everywhere] = -1.0
        return found


def _price(program: _Program, formats: _Formats, link: Link) -> None:
    sources, readers = formats.of(link.sources), formats.of(link.into)
    moved: dict[tuple[Format, Format], int] = {}
    for a in sources:
        for b in readers:
            price = 0.0 if a is b else link.prices.get(frozenset((a, b)), 0.0)
            moved[a, b] = program.variable(price)
    for number_format in EDGE_FORMATS:
        for position, side in enumerate((sources, readers)):
            if number_format in side:
                row = {i: 1.0 for pair, i in moved.items() if pair[position] is number_format}
                program.equal(row | {i: -f for i, f in side[number_format].items()}, 0.0)


def _keep_apart(program: _Program, formats: _Formats, names: frozenset[str]) -> None:
    """FP16 or BF16 in these groups, not both: one binary says which."""
    is_fp16 = program.variable(binary=True)
    for name in names:
        of_group = formats.of_group(name)
        if terms := of_group.get(Format.FP16):
            program.at_most(terms | {is_fp16: -1.0}, 0.0)
        if terms := of_group.get(Format.BF16):
            program.at_most(terms | {is_fp16: 1.0}, 1.0)
