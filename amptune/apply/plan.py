"""Put a Plan in force on a model: its module sites become the runtime's table, its pinned ops the runtime's PINS."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from torch import nn

from amptune import runtime
from amptune.core.chains import find_chains
from amptune.core.formats import Format
from amptune.core.graph import LOSS
from amptune.core.opcodes import KEEP
from amptune.core.pins import following_codes, pinned_codes
from amptune.core.plan import Plan
from amptune.core.runtimetable import runtime_table
from amptune.errors import ApplyError, PlanError


class AppliedPlan(runtime.AppliedPlan):
    """A Plan in force. The runtime's PINS are those of the last plan applied in this process; ``undo`` empties them."""

    def __init__(self, applied: runtime.AppliedPlan, pins: Mapping[str, str]) -> None:
        super().__init__(applied.model, applied.sites)
        self.pins = dict(pins)
        runtime.PINS.clear()
        runtime.PINS.update(pins)

    def undo(self) -> None:
        """Give the model back bit for bit, and empty the runtime's PINS."""
        super().undo()
        runtime.PINS.clear()


def apply(
    model: nn.Module, plan: Plan, *, codes: Mapping[str, str] | None = None, source: str | None = None
) -> AppliedPlan:
    """Put ``plan`` in force on ``model``, in place. TF32 is process-wide and the caller's: ``set_backend_flags``.

    Args:
        model: the model that the plan was made for.
        plan: its sites are module paths and functional ops (``path#op.n``).
        codes: site id -> ``Class.forward#op.n`` of functional ops, as capture found them. Where it is silent, the op
            is taken to stand in the ``forward`` of the module at the site's path.
        source: the file with the pinned ops, for results that go from one to the next in FP32; without it none does.

    Raises:
        ApplyError: a site that the model does not have, a format that the module cannot compute in, a model that is
            sharded already, or two instances of one class that pin the same line differently.
    """
    _check_names(model, plan)
    pins = pins_of(model, plan, codes or {})
    if source is not None:
        pins = _with_chains(pins, plan, codes or {}, source)
    output_format = plan.output_format.label if plan.output_format else None
    try:
        applied = runtime.apply_plan(
            model,
            runtime_table(plan),
            channels_last=plan.channels_last,
            output_format=output_format,
            parameters=Format.BF16.label if plan.params else None,
            compile_loss=plan.loss_compile,
            compile_parts=plan.compile_parts,
            backend=plan.backend,
        )
    except (ValueError, RuntimeError) as error:
        raise ApplyError(f"the plan does not fit this model: {error}") from error
    runtime.await_no_loss(model)
    return AppliedPlan(applied, pins)


def pins_of(model: nn.Module, plan: Plan, codes: Mapping[str, str]) -> dict[str, str]:
    """Source places that the plan computes in FP32: ``Class.forward#op.n`` -> "fp32".

    Raises:
        ApplyError: instances of one class disagree about one line, which can be pinned for all of them only.
    """
    try:
        return dict.fromkeys(pinned_codes(plan, lambda name: codes.get(name) or _code(model, name)), Format.FP32.label)
    except PlanError as error:
        raise ApplyError(error.message, hint=error.hint) from error


def _with_chains(pins: Mapping[str, str], plan: Plan, codes: Mapping[str, str], source: str) -> dict[str, str]:
    chains = find_chains(source, pins, following_codes(plan, codes))
    chained = {**pins, **dict.fromkeys(chains.between, Format.FP32.label)}
    return {**chained, **dict.fromkeys(chains.kept, KEEP)}


def _code(model: nn.Module, name: str) -> str:
    path, _, op = name.partition("#")
    if path == LOSS and not _has_module(model, path):
        return name
    forward = type(model.get_submodule(path)).forward
    return f"{forward.__qualname__.replace('<locals>.', '')}#{op}"


def _has_module(model: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in model.named_modules(remove_duplicate=False))


def _check_names(model: nn.Module, plan: Plan) -> None:
    known = {name for name, _ in model.named_modules(remove_duplicate=False)} | runtime.own_tensors(model).keys()
    gone = [name for name in plan.sites if (path := name.partition("#")[0]) not in known and path != LOSS]
    if not gone:
        return
    listed = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
    raise ApplyError(
        f"{len(gone)} of the plan's {len(plan.sites)} sites are not in this model: {listed}",
        hint=_advice(gone[0].partition("#")[0], known),
    )


def _advice(path: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(path, list(known), n=1)
    nearest = f"did {path!r} become {near[0]!r}? " if near else ""
    return f"{nearest}make the plan again for the model as it is now"
