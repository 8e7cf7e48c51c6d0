"""A plan tried before anything is written: one forward of the planned model and its loss."""

from __future__ import annotations

import dataclasses

from torch import nn

from amptune import runtime
from amptune.apply.mend import how_to_mend
from amptune.apply.plan import apply, pins_of
from amptune.capture import Target, capture, load_target
from amptune.capture.target import take_compilation_off, without_compilation
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.core.plan import Plan
from amptune.errors import ApplyError, CaptureError
from amptune.patch.instrument import instrument_source
from amptune.patch.rewrite import plain_source


def check_runs(target: Target, plan: Plan, graph: PrecisionGraph) -> None:
    """Raise ApplyError where the model does not run with ``plan`` in force.

    The forward is one on fake tensors, which takes no memory; a real one decides where that fails.

    Args:
        target: whose model runs without a plan.
        plan: whose sites the model has.
        graph: of the model as it is.
    """
    codes = {site.id: site.code for site in graph if site.code and not site.is_module}

    def fails(plan: Plan) -> CaptureError | None:
        try:
            capture(_planned(target, plan, codes), frontends=("record-fake", "record-real"))
        except CaptureError as error:
            return error
        finally:
            runtime.PINS.clear()
        return None

    error = fails(plan)
    if error is not None:
        hint = how_to_mend(plan, graph, target.path, error, fails)
        raise ApplyError(f"with this plan the model does not run: {error.message}", hint=hint) from error


def _planned(target: Target, plan: Plan, codes: dict[str, str]) -> Target:
    """The target with the plan in force: ops that it pins are looked up in the user's source, whose lines stay."""
    text = None
    if target.path is None:
        planned = dataclasses.replace(target)
    else:
        text = plain_source(target.path)
        pins = pins_of(target.make_model(), plan, codes)
        planned = load_target(target.spec, source=instrument_source(text, pins))
    build, loss = planned.build, planned.loss_fn

    def built() -> nn.Module:
        model = without_compilation(build())
        take_compilation_off(model)  # the plan's names are those of the model as it was looked at
        # A compiled loss would hide its ops; it has the same formats.
        return apply(model, dataclasses.replace(plan, loss_compile=False), codes=codes, source=text).model

    planned.build = built
    if loss is not None and plan.loss_format is Format.FP32:
        planned.loss_fn = runtime.loss_in(Format.FP32.label)(loss)
    return planned
