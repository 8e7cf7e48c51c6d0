"""The stock recipes that people train with today, by the names that every report uses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.hardware import FP8_MULTIPLE
from amptune.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One uniform way to train a model.

    Attributes:
        name: the name in reports.
        autocast: format of the torch.autocast region around forward and loss; ``None`` for no region.
        tf32: matrix products and convolutions that stay in FP32 may use TF32, on GPUs that have it.
        fp8: how the FP8 linears are scaled; ``None`` for no FP8.
        params: format of parameters and activations where the user's are replaced (a model cast as a whole).
        stock: whether it is one of the recipes that are reported without being asked for.
    """

    name: str
    autocast: Format | None = None
    tf32: bool = False
    fp8: str | None = None
    params: Format | None = None
    stock: bool = True

    @property
    def format(self) -> Format:
        """The narrowest format that the recipe's matrix products run in."""
        if self.fp8:
            return Format.FP8_E4M3
        return self.autocast or self.params or (Format.TF32 if self.tf32 else Format.FP32)

    @property
    def is_tf32(self) -> bool:
        """Whether TF32 is the narrowest of its formats."""
        return self.format is Format.TF32

    @property
    def half(self) -> Format | None:
        """The 16-bit format of its activations; ``None`` when there is none."""
        return self.autocast or self.params


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("fp32"),
        Recipe("tf32", tf32=True),
        Recipe("autocast-bf16", autocast=Format.BF16, tf32=True),
        Recipe("autocast-fp16", autocast=Format.FP16, tf32=True),
        Recipe("fp8-tensorwise", autocast=Format.BF16, tf32=True, fp8="tensorwise"),
        Recipe("fp8-rowwise", autocast=Format.BF16, tf32=True, fp8="rowwise"),
        Recipe("params-bf16", params=Format.BF16, stock=False),
        Recipe("params-fp16", params=Format.FP16, stock=False),
    )
}
"""FP8 recipes keep everything but their linears in BF16 autocast, as torchao's float8 training does.

What autocast leaves in FP32 may use TF32: that is one line of a user's code, and rounds no more than the rest."""

STOCK = tuple(recipe for recipe in RECIPES.values() if recipe.stock)


def converts_to_fp8(site: Site) -> bool:
    """Whether an FP8 recipe converts the site: linear modules whose K and N are multiples of 16."""
    fits = all(gemm.k % FP8_MULTIPLE == 0 and gemm.n % FP8_MULTIPLE == 0 for gemm in site.gemms)
    return site.op == "linear" and site.is_module and bool(site.gemms) and fits and not site.opaque


def recipe_named(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        UsageError: no recipe has this name.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    suggestion = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown recipe {name!r}", hint=f"{suggestion}known: {', '.join(RECIPES)}")
