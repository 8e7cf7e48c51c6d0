"""Compiling a model in parts, as a choice of a plan in compile mode: each repeated block by itself, and the rest in
eager mode.

What a forward does around its blocks can cost a compiled model more than compiling that gains. While transformers is
traced it cannot look whether a mask hides anything, and gives each attention a mask, for which torch has slower
kernels: BERT-base compiled whole took 54 ms a step under autocast in BF16 on an H200, and 37 in parts
(torch 2.11, tests/benchmarks/reports/compiled_parts_h200.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import nn

from amptune.core.plan import Plan
from amptune.tune.running.compilation import BACKEND, is_dear, num_distinct, parts_to_compile
from amptune.tune.running.recipes import Candidate


@dataclasses.dataclass(frozen=True)
class Parts:
    """What of a model can be compiled by itself; false where that is nothing.

    Attributes:
        paths: of the modules.
        backend: of torch.compile.
        makes_loss: whether the forward makes a loss: around the parts it is compiled by itself.
        in_eager: whether trials run in eager mode, since compiling takes far longer than measuring.
        num_layers: layers to compile that multiply, each kind of part once.
    """

    paths: tuple[str, ...] = ()
    backend: str = BACKEND
    makes_loss: bool = False
    in_eager: bool = False
    num_layers: int = 0

    def __bool__(self) -> bool:
        return bool(self.paths)

    def of(self, plan: Plan) -> Plan:
        """The plan in parts; as it is where there are none."""
        if not self:
            return plan
        loss = plan.loss_compile or self.makes_loss
        return dataclasses.replace(plan, compile_parts=self.paths, backend=self.backend, loss_compile=loss)

    def of_recipe(self, recipe: Candidate) -> Candidate:
        """A stock recipe in parts, as its users can have it by hand."""
        plan = self.of(Plan(loss_format=None, scaler=recipe.scaler))
        return dataclasses.replace(recipe, name=f"{recipe.name}+parts", plan=plan, eager=False)


def parts_of(model: nn.Module, backend: str, *, makes_loss: bool) -> Parts:
    """The repeated blocks of a model and what multiplies beside them; none where only the whole model is compiled."""
    parts = parts_to_compile(model, "blocks")
    whole = any(part is model for part in parts)
    paths = () if whole else tuple(_paths(model, parts))
    return Parts(paths, backend, makes_loss, is_dear(model), num_distinct(parts))


def _paths(model: nn.Module, parts: Iterable[nn.Module]) -> Iterable[str]:
    wanted = {id(part) for part in parts}
    return (path for path, module in model.named_modules() if id(module) in wanted)
