"""Groups whose members disagree are taken apart, where the cost model says that it pays.

Sites of one role in repeated blocks decide together. One block whose activations overflow then keeps all the others out
of a format; with its sites apart, the others may have it. Blocks are taken apart whole: sites of one block may be tied.

FP8 everywhere often errs a few times more than trains, so how much of it a plan has decides how fast it is. Groups in
which FP8 saves time therefore become two halves, by the error that it adds to their blocks. In a simulation that is
worth 0.6 and 1.3 % of a step after three plans where FP8 everywhere errs 1.3 and 3 times too much, and nothing where it
trains or errs 12 times too much (tests/benchmarks/reports/fp8_halves.md).

Where some blocks' gradients miss their bar under autocast, in whatever 16-bit format, these are taken apart too: in
Whisper-base on an H200 it was the last encoder layer in BF16, and the last four in FP16.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from amptune.core.choice import FP32
from amptune.tune.allocation.allocate import allocate
from amptune.tune.allocation.caps import Caps
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.adapt import owns

MAX_SPLITS = 4
WORTH = 0.01
"""Smallest share of the predicted time of all sites that a split has to save: each one makes the space larger."""
OUTLIER = 4.0
"""A block counts as sensitive when its error is this many times the median block's."""
ERROR_SHARES = (1.0, 0.5, 0.25)
"""A split is valued at several limits of the error, as shares of the fastest plan's."""
HALVED = 6
"""Groups that are halved at most: those in which FP8 saves most."""
MIN_BLOCKS = 4
FP8_WORTH = 0.005
"""Smallest share of the predicted time of all sites that FP8 has to save in a group that is halved."""
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def split_where_it_pays(
    model: CostModel, fragile: Mapping[str, Collection[str]] | None = None
) -> tuple[CostModel, list[str]]:
    """The model with its space split, and a sentence for each split.

    ``fragile``: 16-bit format -> the parameters whose gradients miss their bar under autocast in it.
    """
    said: list[str] = []
    error = _largest_error(model)
    value = _value(model, error)
    while len(said) < MAX_SPLITS:
        tries = [(_value(_in(model, space), error), space, text) for space, text in _candidates(model)]
        best = min(tries, key=lambda item: item[0], default=None)
        if best is None or best[0] >= value * (1 - WORTH):
            break
        saved, (value, space, text) = value - best[0], best
        model = _in(model, space)
        said.append(f"{text}: saves {saved:.3g} ms by the cost table")
    for name, blocks in _fragile_blocks(model, [*(fragile or {}).values()])[:MAX_SPLITS]:
        model, text = _with_apart(model, name, blocks, "whose gradients autocast gets wrong")
        said.append(text)
    for name in _worth_in_fp8(model):
        model, text = _halved(model, name)
        said.append(text)
    return model, said


def split(space: Space, name: str, apart: frozenset[str], label: str) -> Space:
    """The space with the sites ``apart`` of a group in a group of their own, called ``name in label``."""
    group = next(group for group in space.groups if group.name == name)
    parts = [_part(group, f"{name} in {label}", apart), _part(group, f"{name} elsewhere", {*group.sites} - apart)]
    groups = tuple(itertools.chain.from_iterable(parts if g is group else [g] for g in space.groups))
    # Both parts meet what the whole group met, and one another: two sites of it may.
    meets = tuple(names - {name} | {p.name for p in parts} if name in names else names for names in space.meets)
    return dataclasses.replace(space, groups=groups, meets=meets)


def _part(group: Group, name: str, sites: set[str] | frozenset[str]) -> Group:
    kept = [(site, how) for site, how in zip(group.sites, group.how, strict=True) if site in sites]
    fp8 = group.fp8 & sites
    choices = tuple(choice for choice in group.choices if fp8 or not choice.format.is_fp8)
    return Group(name, tuple(s for s, _ in kept), group.kind, tuple(h for _, h in kept), choices, fp8, group.multiplies)


def _fragile_blocks(model: CostModel, failing: Sequence[Collection[str]]) -> list[tuple[str, frozenset[str]]]:
    """Groups and the fewest of their blocks that do not train in a 16-bit format, the most time to save first.

    None of a group that trains as a whole in one of the formats.
    """
    times, found = model.problem().times, []
    for group in (g for g in model.space.module_groups() if g.multiplies):
        blocks = _blocks(group.sites)
        fails = [_owning(blocks, parameters) for parameters in failing]
        fewest = min(fails, key=len, default=frozenset())
        if len(blocks) >= MIN_BLOCKS and 0 < len(fewest) < len(blocks):
            saved = times[group.name][FP32] - min(times[group.name].values())
            found.append((saved, group.name, fewest))
    return [(name, fewest) for _, name, fewest in sorted(found, key=lambda entry: -entry[0])]


def _owning(blocks: Mapping[str, Sequence[str]], parameters: Collection[str]) -> frozenset[str]:
    """The blocks that own some of the parameters."""
    return frozenset(
        block for block, sites in blocks.items() if any(owns(site, name) for site in sites for name in parameters)
    )


def _worth_in_fp8(model: CostModel) -> list[str]:
    """Groups of enough blocks in which FP8 saves time, the most first."""
    problem = model.problem()
    plain = {name: {c: ms for c, ms in times.items() if not c.format.is_fp8} for name, times in problem.times.items()}
    least = FP8_WORTH * problem.time(allocate(dataclasses.replace(problem, times=plain)))
    saved = {name: min(plain[name].values()) - min(times.values()) for name, times in problem.times.items()}
    groups = [g for g in model.space.module_groups() if saved[g.name] > least and len(_blocks(g.fp8)) >= MIN_BLOCKS]
    return sorted((group.name for group in groups), key=lambda name: -saved[name])[:HALVED]


def _halved(model: CostModel, name: str) -> tuple[CostModel, str]:
    """The model with a group's blocks in two halves, and a sentence: the first has those where FP8 adds most error."""
    group = next(group for group in model.space.module_groups() if group.name == name)
    times = model.problem().times[name]
    fp8 = min((choice for choice in times if choice.format.is_fp8), key=times.__getitem__)
    errors = {
        block: sum(model.sensitivity.error(site, fp8) for site in sites) for block, sites in _blocks(group.fp8).items()
    }
    apart = sorted(errors, key=lambda block: -errors[block])[: len(errors) // 2]
    return _with_apart(model, name, apart, "where FP8 adds most error")


def _with_apart(model: CostModel, name: str, apart: Collection[str], which: str) -> tuple[CostModel, str]:
    """The model with some blocks of a group in a group of their own, and a sentence."""
    group = next(group for group in model.space.module_groups() if group.name == name)
    sites = frozenset(site for block, sites in _blocks(group.sites).items() if block in apart for site in sites)
    label = _ranges(sorted(map(_order, apart)))
    model = _in(model, split(model.space, name, sites, label))
    return model, f"{name}: blocks {label}, {which}, decide by themselves"


def _in(model: CostModel, space: Space) -> CostModel:
    return dataclasses.replace(model, space=space)


def _largest_error(model: CostModel) -> float:
    """Error of the fastest plan if nothing overflowed: with vetoes, one block decides it for all."""
    sites = {name: dataclasses.replace(site, vetoes={}) for name, site in model.sensitivity.sites.items()}
    sensitivity = dataclasses.replace(model.sensitivity, sites=sites)
    problem = dataclasses.replace(model, sensitivity=sensitivity).problem()
    return problem.error(allocate(problem))


def _value(model: CostModel, error: float) -> float:
    """Predicted time of the best plans at several limits of the error: what a split must bring down."""
    problem = model.problem()
    return statistics.fmean(problem.time(allocate(problem, caps=Caps(error=error * s))) for s in ERROR_SHARES)


def _candidates(model: CostModel) -> Iterator[tuple[Space, str]]:
    for group in model.space.module_groups():
        blocks = _blocks(group.sites)
        seen: set[frozenset[str]] = set()
        for names in _disagreeing(model, group, blocks):
            if 0 < len(names) < len(blocks) and names not in seen:
                seen.add(names)
                apart = frozenset(site for block in names for site in blocks[block])
                label = ", ".join(sorted(names, key=_order))
                yield split(model.space, group.name, apart, label), f"{group.name}: block {label} decides by itself"


def _disagreeing(model: CostModel, group: Group, blocks: dict[str, list[str]]) -> Iterator[frozenset[str]]:
    """Sets of blocks that differ from the others: some choice overflows there, or its error stands out."""
    for choice in group.choices:
        if choice == FP32:
            continue
        vetoed = [
            name for name, sites in blocks.items()
            if any(model.sensitivity.veto(site, group.site_choice(site, choice)) for site in sites)
        ]  # fmt: skip
        yield frozenset(vetoed)
        errors = {
            name: sum(model.sensitivity.error(site, group.site_choice(site, choice)) for site in sites)
            for name, sites in blocks.items()
        }
        limit = OUTLIER * statistics.median(errors.values())
        yield frozenset(name for name, error in errors.items() if error > limit)


def _blocks(sites: Iterable[str]) -> dict[str, list[str]]:
    """Number of each block -> those of the sites that it has."""
    blocks: dict[str, list[str]] = {}
    for site in sorted(sites, key=lambda site: _order(_block(site))):
        blocks.setdefault(_block(site), []).append(site)
    return blocks


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 7``: where they follow one another by their ends, increasing."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _order(block: str) -> int:
    return int(block) if block else -1


def _block(site: str) -> str:
    """The number of the outermost repeated block in a path; empty outside of one."""
    found = _NUMBER.findall(site.partition("#")[0])
    return found[0] if found else ""
