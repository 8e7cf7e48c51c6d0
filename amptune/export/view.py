"""The plan as exporters ask for it: module sites, formats, what is pinned, what the scaler cannot be elsewhere."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping

from amptune.core.formats import Format
from amptune.core.plan import HELD, Plan, ScalerConfig, SitePlan
from amptune.export.export import Lost

HALF = (Format.BF16, Format.FP16)
DEFAULT = ScalerConfig()


def stock_autocast(plan: Plan) -> Format | None:
    """The format of a plan that is one autocast region around the whole model, as trainers have it; else None."""
    root = plan.sites.get("")
    return root.format if root is not None and len(plan.sites) == 1 and root.how == "autocast" else None


def half_autocast(plan: Plan) -> Format | None:
    """As ``stock_autocast``, where the region is of a 16-bit format: what a trainer's own setting can say."""
    found = stock_autocast(plan)
    return found if found in HALF else None


def modules(plan: Plan) -> dict[str, SitePlan]:
    """Sites that are modules: path -> decision. The root, "", is left out."""
    return {path: site for path, site in plan.sites.items() if path and "#" not in path and site.how not in HELD}


def held(plan: Plan) -> dict[str, SitePlan]:
    """Parameters and buffers that the plan casts where a module reads them beside its layers."""
    return {name: site for name, site in plan.sites.items() if site.how in HELD and site.format is not Format.FP32}


def functions(plan: Plan) -> dict[str, SitePlan]:
    """Functional ops that the plan puts in a format by itself (not those that follow their inputs)."""
    return {name: site for name, site in plan.sites.items() if "#" in name and site.how != "follow"}


def unpinned(plan: Plan) -> list[Lost]:
    """What is lost where a target takes the model as it is: the ops that the plan pins in the source."""
    pinned = [name for name, site in functions(plan).items() if site.how == "source"]
    if not pinned:
        return []
    return [
        Lost(
            f"{len(pinned)} functional ops that the plan pins in the source are not pinned: {listed(pinned)}",
            "Apply the plan's patch to the model's file (`amptune apply`) and keep those lines.",
        )
    ]


def fp8_modules(plan: Plan) -> dict[str, SitePlan]:
    """Modules that multiply in FP8."""
    return {path: site for path, site in modules(plan).items() if site.format.is_fp8}


def formats_in(plan: Plan) -> set[Format]:
    """Formats of all sites."""
    return {site.format for site in plan.sites.values()}


def half_format(plan: Plan) -> Format | None:
    """The 16-bit format that most sites have, BF16 where FP8 sites have no other beside them; None for FP32 plans."""
    counts = collections.Counter(site.format for site in plan.sites.values() if site.format in HALF)
    if counts:
        return max(counts, key=lambda item: (counts[item], item is Format.BF16))
    return Format.BF16 if any(site.format.is_fp8 for site in plan.sites.values()) else None


def dtype(number_format: Format) -> str:
    """The dtype's name in torch, jax and keras: ``bfloat16``."""
    return number_format.torch_name


def scale_literal(scale: float) -> str:
    """A power of two as one: ``2.0**13``."""
    mantissa, exponent = float(scale).hex().split("p")
    return f"2.0**{int(exponent)}" if mantissa == "0x1.0000000000000" else repr(scale)


def blocks(plan: Plan) -> dict[str, set[Format]]:
    """Repeated blocks (``blocks.0``, ``layer1.1``, ``model.layers.3``) that hold several parts -> their formats."""
    found: dict[str, set[Format]] = {}
    for path, site in modules(plan).items():
        parts = path.split(".")
        index = next((index for index, part in enumerate(parts[:-1]) if part.isdigit()), None)
        if index is not None:
            found.setdefault(".".join(parts[: index + 1]), set()).add(site.format)
    return found


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names in a sentence, the first few of many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by_format(sites: Mapping[str, SitePlan]) -> str:
    """How many sites have which format: ``12 bf16, 2 fp32``."""
    counts = collections.Counter(site.format.label for site in sites.values())
    return ", ".join(f"{count} {label}" for label, count in counts.most_common())


BY_TORCH = "Call compile() of each of these modules, not torch.compile of the model."
"""How modules are compiled by themselves in torch."""
NO_TORCH = "Nothing stands for it here: what was faster so is torch's compiler."
"""The same for targets without it."""


def execution_lost(plan: Plan, *, tf32: str = "Set it in your script.", compiling: str = BY_TORCH) -> list[Lost]:
    """What only the patched model or the runtime can do: padding, layout, compiled parts, TF32.

    Args:
        plan: the plan.
        tf32: how TF32 is switched on with the target.
        compiling: what to do about parts that are compiled.
    """
    lost = []
    padded = {path: site.pad for path, site in plan.sites.items() if site.pad}
    if padded:
        multiple = max(padded.values())
        lost.append(
            Lost(
                f"Padding is not part of it: {listed(padded)}", f"Make out_features a multiple of {multiple} yourself."
            )
        )
    if held(plan):
        lost.append(
            Lost(
                f"Casts of tensors that modules hold are not part of it: {listed(held(plan))}",
                "Cast them where they are read.",
            )
        )
    if plan.channels_last:
        lost.append(Lost("The channels_last layout of convolutions is not part of it", "Convert the model by hand."))
    lost += parts_lost(plan, compiling)
    if plan.tf32:
        lost.append(Lost("TF32 is not part of it", tf32))
    return lost


def parts_lost(plan: Plan, compiling: str = BY_TORCH) -> list[Lost]:
    """The parts that the plan has compiled by themselves, where the target does not."""
    if not plan.compile_parts:
        return []
    what = f"Compiling parts of the model by themselves is not part of it: {listed(plan.compile_parts)}"
    return [Lost(what, compiling)]


def scaler_lost(
    scaler: ScalerConfig, where: str, *, power_of_two: bool = False, floor: float | None = None
) -> list[Lost]:
    """Settings of the loss scaler that ``where`` does not have; its factors are fixed at 2.

    Args:
        scaler: the plan's.
        where: the target, in a sentence.
        power_of_two: its initial scale is a power of two.
        floor: its scale does not sink below this; None for no floor.
    """
    lost: list[Lost] = []
    if not scaler.enabled:
        return lost
    wanted = [
        f"{name} {getattr(scaler, name)}"
        for name in ("growth_factor", "backoff_factor")
        if getattr(scaler, name) != getattr(DEFAULT, name)
    ]
    if wanted:
        lost.append(
            Lost(f"{where} doubles and halves the loss scale; {' and '.join(wanted)} cannot be set", _WATCH_SCALE)
        )
    if power_of_two and math.frexp(scaler.init_scale)[0] != 0.5:
        lost.append(
            Lost(f"{where} starts from a power of two, not {scaler.init_scale}", "The nearest lower one is written.")
        )
    if floor is not None:
        lost.append(
            Lost(
                f"{where} does not let the loss scale sink below {floor:g}; torch.amp.GradScaler has no floor",
                "A run that needs a smaller scale diverges: watch for steps that are skipped in a row.",
            )
        )
    return lost


_WATCH_SCALE = "Watch the share of skipped steps; the pytorch target has the exact scaler."
