"""The assignment of choices to groups that the measured costs say is best, cast prices included.

Minimise  sum_i time_i(x_i) + lambda * error_i(x_i) + sum_links price(format, format)  over one choice for each group.
Two choices over plain links are an s-t minimum cut, everything else an integer program: both give the optimum of the
model. Where neither can run (no scipy, or the solver runs out of time) a greedy descent gives a good answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from amptune.core.choice import FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.tables import EDGE_FORMATS, CostTable, Edge, promoted
from amptune.tune.allocation.caps import NO_CAPS, Caps
from amptune.tune.allocation.mincut import minimum_cut
from amptune.tune.choices.space import Space

Assignment = dict[str, Choice]
Values = Mapping[str, Mapping[Choice, float]]
"""Group -> choice -> a number."""
Pair = frozenset[Format]
FRONT_POINTS = 12


@dataclasses.dataclass(frozen=True)
class Link:
    """What a cast between the outputs of some groups and their reader costs, by the two formats.

    ``sources`` and ``into`` are names of groups whose formats promote; INPUT among them stands for FP32.
    """

    sources: frozenset[str]
    into: frozenset[str]
    prices: Mapping[Pair, float] = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True)
class Problem:
    """An allocation to solve.

    Attributes:
        times: milliseconds of a group in each of its choices; infinite for what may not be chosen.
        links: the casts between groups.
        errors: error of a group in each choice, on any scale; missing ones count as zero.
        memory: bytes of a group in each choice; only for a cap.
        meets: sets of groups in which FP16 and BF16 may not both be.
    """

    times: Values
    links: Sequence[Link] = ()
    errors: Values = dataclasses.field(default_factory=dict)
    memory: Values = dataclasses.field(default_factory=dict)
    meets: Sequence[frozenset[str]] = ()

    def time(self, chosen: Mapping[str, Choice]) -> float:
        """Milliseconds of an assignment."""
        formats = {name: choice.output_format for name, choice in chosen.items()}
        total = sum(self.times[name][choice] for name, choice in chosen.items())
        for link in self.links:
            a, b = (promoted(formats.get(name, Format.FP32) for name in side) for side in (link.sources, link.into))
            total += link.prices.get(frozenset((a, b)), 0.0) if a is not b else 0.0
        return total

    def error(self, chosen: Mapping[str, Choice]) -> float:
        """Error of an assignment: the sum of its groups'."""
        return sum(self.errors.get(name, {}).get(choice, 0.0) for name, choice in chosen.items())

    def bytes(self, chosen: Mapping[str, Choice]) -> float:
        """Bytes of an assignment, of what its groups' choices decide."""
        return sum(self.memory.get(name, {}).get(choice, 0.0) for name, choice in chosen.items())

    def excess(self, chosen: Mapping[str, Choice], caps: Caps) -> float:
        """By how much it is over the caps, as a share of them; zero where it keeps them."""
        sums = ((self.bytes(chosen), caps.bytes), (self.error(chosen), caps.error))
        # The solver keeps a cap up to its own tolerance.
        return sum(
            max(0.0, total / limit - 1 - 1e-6) if limit > 0 else total for total, limit in sums if limit < math.inf
        )

    def is_legal(self, chosen: Mapping[str, Choice], caps: Caps = NO_CAPS) -> bool:
        """Whether it has a kernel everywhere, keeps the caps, and FP16 and BF16 meet nowhere."""
        halves = ({chosen[name].output_format for name in names} - {Format.FP32} for names in self.meets)
        return (
            all(math.isfinite(self.times[name][choice]) for name, choice in chosen.items())
            and all(len(found) < 2 for found in halves)
            and self.excess(chosen, caps) == 0
        )


def problem_of(
    space: Space,
    table: CostTable,
    edges: Iterable[Edge],
    errors: Values | None = None,
    vetoes: Mapping[str, Iterable[Choice]] | None = None,
    memory: Values | None = None,
) -> Problem:
    """The allocation of a space: costs and tensors of sites brought together by group.

    ``vetoes``: group -> choices that may not be made, whatever they would save.
    """
    banned = {name: set(choices) for name, choices in (vetoes or {}).items()}
    times: dict[str, dict[Choice, float]] = {}
    group_of: dict[str, str] = {}
    for group in space.module_groups():
        group_of |= dict.fromkeys(group.sites, group.name)
        times[group.name] = {
            choice: sum(table.site(site, group.site_choice(site, choice)).ms for site in group.sites)
            if choice not in banned.get(group.name, ())
            else math.inf
            for choice in group.choices
        }
    return Problem(times, _links(edges, group_of, table), errors or {}, memory or {}, space.meets)


def allocate(problem: Problem, weight: float = 0.0, caps: Caps = NO_CAPS) -> Assignment:
    """The assignment with the least time + ``weight`` x error among those that are legal.

    Where nothing fits within the caps, the one that comes closest.
    """
    if not problem.times:
        return {}
    if not caps.any and (cut := minimum_cut(problem, weight)) is not None:
        return cut
    starts = list(_starts(problem))
    solved = _integer_program(problem, weight, caps)
    score = _score(problem, weight, caps)
    if solved is not None:
        # The solver may have stopped at its time limit, with something worse than a plain plan.
        return min([solved, *starts], key=score)
    return min((_descend(problem, start, score) for start in starts), key=score)


def front(problem: Problem, caps: Caps = NO_CAPS, limit: int = FRONT_POINTS) -> list[Assignment]:
    """The assignments that are best for some weight of the error, fastest first.

    Between two of them the weight at which both are equally good is tried next: if neither is the best there, what is
    lies between them. So every corner of the convex hull is found, and none twice.
    """
    fastest = allocate(problem, 0.0, caps)
    found = [fastest]
    if any(any(values.values()) for values in problem.errors.values()):
        _sweep(problem, caps, fastest, _exactest(problem, caps), found, limit)
    return sorted(_distinct(found), key=problem.time)


def _sweep(
    problem: Problem, caps: Caps, fast: Assignment, exact: Assignment, found: list[Assignment], limit: int
) -> None:
    """Breadth first, so that a limited front is spread out."""
    found.append(exact)
    pairs = [(fast, exact)]
    while pairs and len(found) < limit:
        low, high = pairs.pop(0)
        slower, better = problem.time(high) - problem.time(low), problem.error(low) - problem.error(high)
        if slower <= 1e-12 or better <= 1e-300:
            continue
        weight = slower / better
        between = allocate(problem, weight, caps)
        if problem.time(between) + weight * problem.error(between) < (
            problem.time(low) + weight * problem.error(low)
        ) * (1 - 1e-9):
            found.append(between)
            pairs += [(low, between), (between, high)]


def _exactest(problem: Problem, caps: Caps) -> Assignment:
    """The least error, and of those about the fastest: the error decides where it differs by more than a millionth."""
    span = sum(max(filter(math.isfinite, v.values()), default=0.0) for v in problem.times.values())
    span += sum(max(link.prices.values(), default=0.0) for link in problem.links)
    total = sum(max(values.values(), default=0.0) for values in problem.errors.values() if values)
    return allocate(problem, 1e6 * max(span, 1e-9) / total, caps)


def _links(edges: Iterable[Edge], group_of: Mapping[str, str], table: CostTable) -> list[Link]:
    """Edges between the same groups added up; what stays inside one group costs nothing."""
    prices: dict[tuple[frozenset[str], frozenset[str]], dict[Pair, float]] = {}
    for edge in edges:
        named = (frozenset(group_of.get(name, INPUT) for name in side) for side in (edge.sources, edge.into))
        a, b = (frozenset({INPUT}) if INPUT in side else side for side in named)
        if a == b:
            continue
        known = prices.setdefault((a, b), {})
        for one, other in itertools.combinations(EDGE_FORMATS, 2):
            pair = frozenset((one, other))
            known[pair] = known.get(pair, 0.0) + table.cast(one, other, edge.numel) * edge.share
    return [Link(a, b, known) for (a, b), known in prices.items() if any(known.values())]


def _score(problem: Problem, weight: float, caps: Caps) -> Callable[[Assignment], tuple[float, float]]:
    def score(chosen: Assignment) -> tuple[float, float]:
        illegal = math.inf if not problem.is_legal(chosen) else problem.excess(chosen, caps)
        return illegal, problem.time(chosen) + weight * problem.error(chosen)

    return score


def _starts(problem: Problem) -> Iterator[Assignment]:
    """What a user would try: one choice wherever it is legal, with the nearest to it elsewhere."""
    choices = sorted({choice for values in problem.times.values() for choice in values})
    for choice in choices:
        chosen: Assignment = {}
        for name, values in problem.times.items():
            wanted = (choice, Choice(choice.output_format), FP32, *values)
            chosen[name] = next((c for c in wanted if math.isfinite(values.get(c, math.inf))), next(iter(values)))
        yield chosen


def _descend(problem: Problem, start: Assignment, score: Callable[[Assignment], tuple[float, float]]) -> Assignment:
    """Change one group at a time while that helps."""
    best = start
    while True:
        flips = (best | {name: choice} for name, values in problem.times.items() for choice in values)
        found = min(flips, key=score)
        if score(found) >= score(best):
            return best
        best = found


def _integer_program(problem: Problem, weight: float, caps: Caps) -> Assignment | None:
    try:
        from amptune.tune.allocation.milp import solve
    except ModuleNotFoundError:
        return None
    return solve(problem, weight, caps)


def _distinct(assignments: Iterable[Assignment]) -> list[Assignment]:
    return list({tuple(sorted(chosen.items())): chosen for chosen in assignments}.values())
