"""Where the gradients that a step of a scaler takes come from: scaled losses, plain ones, or both."""

from __future__ import annotations

import ast

from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import asks_finiteness, block_of


def gate_of_backward_alone(source: SourceFile, flow: Flow, step: Event) -> ast.If | None:
    """``if isfinite(loss): scaler.scale(loss).backward()`` with the step behind it, in the same block."""
    place = source.statement_of(step.node)
    block = block_of(source, place) if isinstance(place, ast.stmt) else []
    for backward in flow.of("backward", scaler=step.scaler):
        gates = [item for item in source.ancestors(backward.node) if isinstance(item, ast.If) and item in block]
        for gate in gates if backward.scaled and not backward.calls and not step.calls else ():
            side = gate.body if any(source.index.is_inside(backward.node, item) for item in gate.body) else None
            other = gate.orelse if side is not None else gate.body
            leaves = any(isinstance(item, ast.Continue | ast.Return | ast.Raise | ast.Break) for item in other)
            others = any(source.index.is_inside(event.node, item) for event in flow.events for item in other)
            if (
                block.index(gate) < block.index(place)
                and asks_finiteness(source, gate.test)
                and source.loops_of(backward.node) == source.loops_of(gate)
                and not leaves
                and not others
            ):
                return gate
    return None


def is_fed(source: SourceFile, flow: Flow, step: Event) -> bool:
    """Whether scaled gradients can reach the step, directly or in a way that cannot be followed."""
    others = flow.of("wrapper", "grad_write")  # may bring scaled gradients in another way
    others += [event for event in flow.of("scale") if not isinstance(source.parent(event.node), ast.Expr)]
    sources = [*others, *(event for event in flow.of("backward") if event.scaled)]

    def spent(event: Event) -> bool:
        return event.kind == "zero_grad" and event.optimizer == step.optimizer

    return any(flow.may_reach(event, step, without=spent) for event in sources)


def feeds_plainly(flow: Flow, backward: Event, step: Event) -> bool:
    """Whether the gradients of a plain loss go into the step of the scaler."""
    if backward.scaled or backward.owner != "user" or not backward.subject or "scale" in backward.subject.lower():
        return False

    def spent(event: Event) -> bool:
        return event.kind in ("step", "optimizer_step") or (
            event.kind == "zero_grad" and event.optimizer == step.optimizer
        )

    return flow.path(backward, step, without=spent, same_iteration=True) is not None


def is_mixed(source: SourceFile, flow: Flow, backward: Event, step: Event) -> bool:
    """Whether a scaled backward adds to the same gradients before anything divides them by the scale."""
    scaled = [event for event in flow.of("backward", scaler=step.scaler) if event.scaled]
    if _is_handed_over(source, backward) and not any(_scales_parameter(source, event) for event in scaled):
        return False  # the caller may have scaled it
    if any(flow.may_reach(backward, plain) for plain in flow.of("optimizer_step")):
        return False  # may be meant for an optimizer that has no scaler

    def divides(event: Event) -> bool:
        return event.kind in ("unscale", "step", "update", "zero_grad", "grad_write", "get_scale", "wrapper")

    return any(
        flow.path(first, second, without=divides, same_iteration=True)
        for event in scaled
        for first, second in ((event, backward), (backward, event))
    )


def _is_handed_over(source: SourceFile, backward: Event) -> bool:
    """Whether the loss is a parameter of the function."""
    loss = backward.receiver or backward.node
    return any(binding.kind == "parameter" for binding in source.bindings(loss))


def _scales_parameter(source: SourceFile, backward: Event) -> bool:
    """Whether the loss that is scaled is a parameter too, so that the caller hands over losses as they are."""
    scaling = backward.receiver
    losses = scaling.args if isinstance(scaling, ast.Call) else []
    return any(binding.kind == "parameter" for loss in losses for binding in source.bindings(loss))
