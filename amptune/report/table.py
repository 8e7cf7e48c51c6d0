"""Analyze's tables for the terminal: what each recipe would take on each GPU, and which sites it would gain on."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from amptune.core.closeness import FIXED, KNOWN_ERROR, WAITING_ERROR, nearly_fastest
from amptune.core.recipes import RECIPES
from amptune.core.sizes import size_text

_SITE_WIDTH = 40
_MOSTLY = 0.5
_SHORT = {"bfloat16": "bf16", "float16": "fp16"}
_MOST_COLUMNS = 4
TOO_CLOSE = "too close to call"
CLOSENESS_NOTE = (
    f"On H200s, predicted ratios of two steps are off by {KNOWN_ERROR:.0%} or less in four of five cases, by "
    f"{WAITING_ERROR:.0%} where one is bound by launches; `amptune bench` measures them."
)
"""Why a prediction cannot tell between recipes."""


@dataclasses.dataclass(frozen=True)
class SiteRow:
    """One line of the table of sites: a site, or the like sites of repeated blocks.

    Attributes:
        name: site id; a pattern where ``count`` is more than 1.
        op: name in the op table.
        shape: of the matrix product, or of the output.
        count: sites in it.
        milliseconds: predicted time of a step by recipe, all sites together.
        note: why it should stay in FP32, where that is known.
    """

    name: str
    op: str
    shape: str
    count: int
    milliseconds: Mapping[str, float] = dataclasses.field(hash=False)
    note: str = ""


def render_estimates(
    estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], mode: str, launches: Mapping[str, str] | None = None
) -> str:
    """Step time and speedup against FP32 of each recipe on each GPU, and memory; the fixed model where it differs.

    Recipes are rows and GPUs columns; with many GPUs the other way round.

    Args:
        estimate: the ``estimate`` object of analyze's JSON.
        mode: eager or compile, for the heading.
        launches: GPU key -> what a launch on the processor beside it is taken to cost, and where that is from.
    """
    gpus = [gpu for gpu, table in estimate.items() if table]
    if not gpus:
        return ""
    named = row_names(estimate)
    known = _ordered({recipe for gpu in gpus for recipe in estimate[gpu]})
    recipes = [name for name in known if not name.endswith(FIXED) or _differs(estimate, gpus, name)]
    grid = [
        [named.get(recipe, recipe), *(_cell(estimate[gpu].get(recipe)) for gpu in gpus), _memory(estimate, recipe)]
        for recipe in recipes
    ]
    rows = [["recipe", *gpus, "memory"], *grid]
    if len(gpus) > _MOST_COLUMNS:
        rows = [list(column) for column in zip(*rows, strict=True)]
    base = named.get("fp32", "fp32")
    title = f"predicted training step, {mode} mode: milliseconds, speedup over {base}, peak memory (nothing was run)"
    notes = [*_legend(rows), *_own(estimate, named), *_launches(estimate, launches or {}), *_fp8_by_ops(recipes, mode),
             *_stopped(estimate, recipes), *_fastest(estimate, named)]  # fmt: skip
    return "\n".join([title, *_aligned(rows), *notes]) + "\n"


def row_names(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, str]:
    """What to call recipes without a 16-bit format of their own where the model itself is in 16 bits for the most part:
    under them a BF16 model runs in BF16."""
    found: dict[str, str] = {}
    for recipe, halves in _halves(estimate).items():
        base = recipe.removesuffix(FIXED)
        if sum(halves.values()) >= _MOSTLY:
            most = max(halves, key=lambda dtype: halves[dtype])
            found[recipe] = f"own {_SHORT.get(most, most)}{'' if base == 'fp32' else '+' + base}{recipe[len(base) :]}"
    return found


def _halves(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, float]]:
    """Recipe -> the model's own 16-bit dtypes, by their share of its FLOPs."""
    entries = ((recipe, entry) for table in estimate.values() for recipe, entry in table.items())
    return {recipe: entry["own_formats"] for recipe, entry in entries if entry.get("own_formats")}


def _own(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], named: Mapping[str, str]) -> list[str]:
    halves = _halves(estimate).get("fp32")
    if not halves:
        return []
    listed = " and ".join(f"{share:.0%} of its FLOPs in {_SHORT.get(dtype, dtype)}" for dtype, share in halves.items())
    name = f"{named['fp32']} (recipe fp32)" if "fp32" in named else "fp32"
    return [f"  {name}: the model's own parameters, casts or autocast regions run {listed}"]


def _fp8_by_ops(recipes: Collection[str], mode: str) -> list[str]:
    """What FP8 recipes stand for where nothing fuses their casts."""
    if mode != "eager" or not any(recipe.startswith("fp8") for recipe in recipes):
        return []
    return [
        "  fp8: torchao's float8, whose casts are ops of their own in eager mode; those of `amptune tune` are fused"
    ]


def _legend(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [cell for row in rows for cell in row]
    notes = {
        FIXED: "+fixed: misaligned dimensions padded, convolutions in channels_last",
        "!": "!: needs more than the GPU's memory",
        "*": "*: bound by launches on the processor, not by the GPU",
    }
    return [f"  {note}" for mark, note in notes.items() if any(mark in cell for cell in cells)]


def _launches(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], launches: Mapping[str, str]) -> Iterator[str]:
    """What the launches cost that bound recipes, and what these would take if the processor kept up."""
    for gpu, words in launches.items():
        alone = [entry["gpu_ms"] for entry in estimate.get(gpu, {}).values() if entry.get("bound") == "launch"]
        if alone:
            ends = dict.fromkeys(f"{end:.2f}" for end in (min(alone), max(alone)))
            yield f"     {gpu}: {words}; without waiting for them these take {' to '.join(ends)} ms"


def _stopped(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], recipes: Sequence[str]) -> list[str]:
    """Which recipes do not run, and the rule and line whose finding says why."""
    stopped: dict[str, list[str]] = {}
    for recipe in recipes:
        entries = [table[recipe] for table in estimate.values() if recipe in table]
        if reason := next((str(entry["reason"]) for entry in entries if "reason" in entry), ""):
            stopped.setdefault(reason.partition(": ")[0], []).append(recipe)
    return [f"  does not run: {', '.join(names)}; see {place}" for place, names in stopped.items()]


def fastest_lines(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], named: Mapping[str, str]) -> Iterator[str]:
    """Which recipe is the fastest, or between which ones the prediction cannot tell; GPUs of one answer together."""
    answers: dict[tuple[str, ...], list[str]] = {}
    for gpu, table in estimate.items():
        if len(table) > 1 and (found := nearly_fastest(table)):
            answers.setdefault(tuple(named.get(name, name) for name in found), []).append(gpu)
    for names, gpus in answers.items():
        if len(names) == 1:
            yield f"fastest on {', '.join(gpus)}: {names[0]}"
        else:
            yield f"{TOO_CLOSE} on {', '.join(gpus)}: {', '.join(names)}"


def _fastest(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], named: Mapping[str, str]) -> Iterator[str]:
    """The same for a terminal, with the error that decides what is close."""
    lines = list(fastest_lines(estimate, named))
    yield from (f"  {line}" for line in lines)
    if any(line.startswith(TOO_CLOSE) for line in lines):
        yield f"     ({CLOSENESS_NOTE[0].lower()}{CLOSENESS_NOTE[1:-1]})"


def _memory(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], recipe: str) -> str:
    found = next((table[recipe]["memory_bytes"] for table in estimate.values() if recipe in table), 0)
    return "-" if found is None else size_text(found, digits=1)


def _ordered(recipes: Collection[str]) -> list[str]:
    """In the order of the recipes' table, each with its fixed twin after it."""
    return [name for recipe in RECIPES for name in (recipe, recipe + FIXED) if name in recipes]


def _differs(estimate: Mapping[str, Mapping[str, Mapping[str, Any]]], gpus: Sequence[str], recipe: str) -> bool:
    """Whether fixing changes a recipe by half a percent or more on some GPU."""
    plain = recipe.removesuffix(FIXED)
    for gpu in gpus:
        before, after = estimate[gpu].get(plain), estimate[gpu].get(recipe)
        if (
            before
            and after
            and "reason" not in before
            and abs(before["step_ms"] - after["step_ms"]) >= 0.005 * before["step_ms"]
        ):
            return True
    return False


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    if "reason" in entry:
        return "does not run"
    marks = ("" if entry.get("fits", True) else "!") + ("*" if entry.get("bound") == "launch" else "")
    return f"{entry['step_ms']:9.2f} {entry['speedup']:5.2f}x{marks}"


def render_sites(
    rows: Sequence[SiteRow], recipes: Sequence[str], gpu: str, limit: int = 12, named: Mapping[str, str] | None = None
) -> str:
    """The sites that gain most, one line each.

    Args:
        rows: in the order to show them.
        recipes: columns, by recipe name.
        gpu: on which the times are predicted.
        limit: lines to show.
        named: recipe -> what to call it, where that is not its name; see :func:`row_names`.
    """
    if not rows:
        return ""
    header = ["site", "op", "shape", *(f"{(named or {}).get(recipe, recipe)} ms" for recipe in recipes), "note"]
    body = [
        [
            _shortened(row.name) + (f" ({row.count}x)" if row.count > 1 else ""),
            row.op,
            row.shape,
            *(_number(row.milliseconds.get(recipe)) for recipe in recipes),
            row.note,
        ]
        for row in rows[:limit]
    ]
    left = len(rows) - limit
    more = [f"... and {left} more"] if left > 0 else []
    title = f"where the time goes on {gpu}, largest gain first (predicted milliseconds a step)"
    return "\n".join([title, *_aligned([header, *body]), *more]) + "\n"


def _shortened(name: str) -> str:
    name = name or "(the model)"
    return name if len(name) <= _SITE_WIDTH else "..." + name[3 - _SITE_WIDTH :]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"  {line}" for line in lines]
