"""What the alignment rules share: the dimensions of a matrix product, and what padding one would save."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from amptune.core.finding import Severity
from amptune.core.formats import Format
from amptune.core.graph import Gemm, Site
from amptune.core.graph_context import LARGE_SHARE, SMALL_SHARE, GraphContext
from amptune.core.hardware import FP8_MULTIPLE, multiple_for, padded
from amptune.core.ops import Family, op_named
from amptune.core.roofline import padded_size, training_gemm_seconds

WORTH_A_WARNING = 0.01
"""Share of the predicted step that a fix has to save before its finding is a warning."""


@dataclasses.dataclass(frozen=True)
class Misaligned:
    """One dimension of one matrix product that is not a multiple of 16 bytes in 16-bit formats."""

    site: Site
    gemm: Gemm
    value: int
    padded: int
    dimension: Literal["k", "n"]
    saves_ms: Mapping[str, float] = dataclasses.field(hash=False)

    @property
    def waste(self) -> float:
        """Extra work that padding adds, as a share."""
        return self.padded / self.value - 1


def misaligned(context: GraphContext, dimension: Literal["k", "n"]) -> Iterator[Misaligned]:
    """Matrix products worth a word whose K or N is over 8 and not a multiple of it: a noticeable part of the model's
    FLOPs, or of the step that padding would save, as of narrow layers over many rows."""
    gpus = context.tensor_core_gpus()
    if not gpus or not any(recipe.half for recipe in context.recipes):
        return
    for site, gemm in context.gemms(Family.GEMM, Family.RNN, Family.ATTENTION):
        value = getattr(gemm, dimension)
        if (
            context.stays_wide(site)
            or not _is_own_choice(site, gemm, dimension)
            or padded_size(value, Format.BF16, gpus[0]) == value
        ):
            continue
        found = Misaligned(
            site, gemm, value, advised_size(context, site, value), dimension, _savings(context, site, gemm)
        )
        if _is_worth(context, found) or (context.share(site) >= SMALL_SHARE and not _costs_alone(context, found)):
            yield found


DEAR = 0.1
"""Share of the work that padding adds from which it is not advised where it saves no time."""


def _costs_alone(context: GraphContext, found: Misaligned) -> bool:
    """Whether padding adds real work, as 17 numbers that are given to the first layer become 24, and saves no time."""
    return is_dear(context, found.waste, [gpu for gpu, saved in found.saves_ms.items() if saved > 0])


def is_dear(context: GraphContext, waste: float, gaining: Collection[str]) -> bool:
    """Whether padding adds real work for nothing: the step waits for the processor on each GPU that would gain."""
    return waste >= DEAR and context.waiting.issuperset(gaining)


CHEAP = 0.05
"""Share of the work that a size for FP8 too may cost beside one for 16 bits."""
DIVIDED = 3
"""Numbers of rows at one line from which they are told together: what each expert gets, another every step."""


def rows_of_lines(first: Mapping[int, Site]) -> list[tuple[list[int], Site]]:
    """Numbers of rows, and the first site that has them: one by one, or all of a line where it has many."""
    lines: dict[object, list[int]] = {}
    for m, site in first.items():
        lines.setdefault((site.location.path, site.location.line) if site.location else site.id, []).append(m)
    groups = [each for ms in lines.values() for each in ([sorted(ms)] if len(ms) >= DIVIDED else [[m] for m in ms])]
    return [(ms, first[next(m for m in first if m in ms)]) for ms in groups]


def advised_size(context: GraphContext, site: Site, value: int) -> int:
    """The size to pad K or N to: one for all formats, so a multiple of 16 where a recipe would run the site in FP8 and
    that is next to no work more."""
    size = padded_size(value, Format.BF16, context.tensor_core_gpus()[0])
    both = padded(size, FP8_MULTIPLE)
    return both if _may_be_fp8(context, site) and both <= (1 + CHEAP) * size else size


def asks_for_fp8(context: GraphContext) -> bool:
    """Whether an FP8 recipe is asked about on a GPU that has FP8 products."""
    return any(recipe.fp8 for recipe in context.recipes) and any(
        gpu.is_native(Format.FP8_E4M3) for gpu in context.tensor_core_gpus()
    )


def _may_be_fp8(context: GraphContext, site: Site) -> bool:
    return site.op == "scaled_mm" or (site.op == "linear" and not site.opaque and asks_for_fp8(context))


def _is_own_choice(site: Site, gemm: Gemm, dimension: Literal["k", "n"]) -> bool:
    """Whether the dimension is one that the user chose: not the gates of an RNN (they follow the hidden size), nor the
    products inside an attention, whose head dimension has a rule of its own: embed_dim is a multiple of it."""
    family = op_named(site.op).family
    if family is Family.RNN:
        return dimension == "k"
    return family is not Family.ATTENTION or (
        site.op == "multi_head_attention"
        and gemm.batch == 1
        and getattr(gemm, dimension) % max(int(site.attrs.get("embed_dim") or 1), 1) != 0
    )


def _savings(context: GraphContext, site: Site, gemm: Gemm) -> dict[str, float]:
    """Milliseconds of a training step saved by padding K and N, by GPU, in its best 16-bit format."""
    count = site.gemms.count(gemm)
    wide = dataclasses.replace(gemm, n=advised_size(context, site, gemm.n), k=advised_size(context, site, gemm.k))
    saved = {}
    for gpu in context.tensor_core_gpus():
        best = gpu.best_16bit
        before = training_gemm_seconds(gemm, best, gpu)
        after = training_gemm_seconds(wide, best, gpu)
        saved[gpu.key] = max(0.0, count * (before - after) * 1e3)
    return saved


def severity_of(context: GraphContext, found: Misaligned) -> Severity:
    """Speed is a warning only where the shape is a large part of the model and the fix a real part of the step."""
    if context.mode == "compile" or context.share(found.site) < LARGE_SHARE:
        return Severity.INFO
    return Severity.WARNING if _is_worth(context, found) else Severity.INFO


def _is_worth(context: GraphContext, found: Misaligned) -> bool:
    """Whether padding saves a real part of the step, in all blocks together."""
    shares = [
        context.step_share(gpu, f"autocast-{gpu.best_16bit}", milliseconds * context.repeats(found.site))
        for gpu in context.tensor_core_gpus()
        if (milliseconds := found.saves_ms[gpu.key]) > 0
    ]
    return any(share is not None and share >= WORTH_A_WARNING for share in shares)


def padding(context: GraphContext, found: Misaligned) -> str:
    """The size to pad to, what that costs, and whether FP8 takes it too."""
    if text := merged(found.site, found.value):
        return text
    fp8 = "; FP8 takes it too" if _may_be_fp8(context, found.site) and found.padded % FP8_MULTIPLE == 0 else ""
    return f"pad to {found.padded} (+{found.waste:.1%} work{fp8})"


def parts_of(site: Site, value: int) -> tuple[int, ...]:
    """The axes that an einsum merges into a dimension of that size, as experts and their places; empty for one axis."""
    before, arrow, after = str(site.attrs.get("equation", "")).replace(" ", "").partition("->")
    terms = before.split(",")
    shapes = [tensor.shape for tensor in site.inputs]
    if not arrow or len(terms) != 2 or [*map(len, terms)] != [*map(len, shapes)]:
        return ()
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    first, second = ([letter for letter in term if sizes[letter] > 1] for term in terms)
    for letters in (
        [letter for letter in first if letter in second and letter not in after],
        [letter for letter in first if letter not in second],
        [letter for letter in second if letter not in first],
    ):
        parts = tuple(sizes[letter] for letter in letters)
        if len(parts) > 1 and math.prod(parts) == value:
            return parts
    return ()


def merged(site: Site, value: int) -> str:
    """What a dimension that an einsum merges is made of, and which axis to make longer; empty for one axis."""
    if not (parts := parts_of(site, value)):
        return ""
    multiple = multiple_for(Format.BF16)
    odd = max(parts, key=lambda part: part if part % multiple else 0)
    better = padded(odd, multiple)
    return f"it is {' x '.join(map(str, parts))}, and aligned with {better} for {odd} (+{better / odd - 1:.1%} work)"


def notes(context: GraphContext, found: Misaligned) -> str:
    """The other dimension, where that has to be padded too, and what torch.compile does about it."""
    other, name = other_dimension(context, found)
    together = f" together with {name} = {other} (to {advised_size(context, found.site, other)})" if other else ""
    return together + ("; inductor may pad it by itself" if context.mode == "compile" else "")


def other_dimension(context: GraphContext, found: Misaligned) -> tuple[int, str]:
    """The size of the other dimension and what it is called, where it has to be padded too; 0 where it has not."""
    letter: Literal["k", "n"] = "n" if found.dimension == "k" else "k"
    other: int = getattr(found.gemm, letter)
    is_odd = padded_size(other, Format.BF16, context.tensor_core_gpus()[0]) != other
    if not is_odd or not _is_own_choice(found.site, found.gemm, letter):
        return 0, ""
    return other, f"{linear_name(found.site, letter)} {letter.upper()}"


def measures(context: GraphContext, found: Misaligned) -> dict[str, Any]:
    """What the JSON of a finding says of a dimension."""
    return {
        "value": found.value,
        "padded": found.padded,
        "waste": round(found.waste, 6),
        "flops_share": round(context.share(found.site), 4),
        "saves_ms": dict(found.saves_ms),
        **({"together": together} if (together := other_dimension(context, found)[0]) else {}),
    }


def linear_name(site: Site, dimension: Literal["k", "n"]) -> str:
    """What the user calls the dimension."""
    if site.op == "linear":
        return "in_features" if dimension == "k" else "out_features"
    if op_named(site.op).family is Family.RNN:
        return "input or hidden size"
    if site.op == "multi_head_attention":
        return "embed_dim"
    return "reduction length" if dimension == "k" else "columns"
