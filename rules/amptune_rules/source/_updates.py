"""The ways in which an update of a scaler is out of step with the optimizers that it steps.

Each gives the message, its severity and, where an update behind it makes it needless, that later update.
"""

from __future__ import annotations

import ast

from amptune.core.finding import Severity
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import runs_before, same_optimizer, varies

_CHECKS = ("step", "unscale", "handed", "wrapper")


def for_each_optimizer(source: SourceFile, flow: Flow, update: Event) -> tuple[str, Severity, Event | None] | None:
    """An update for each optimizer of a loop, while the gradients of all were scaled before it."""
    for step in flow.of("step", scaler=update.scaler):
        around = flow.loops(step)
        if not around or around != flow.loops(update) or not _varies(source, step):
            continue
        if flow.path(update, step, without=("scale", "backward", "zero_grad")) is not None:
            message = (
                f"{update.scaler_name}.update() runs after each optimizer of the loop, so later ones are unscaled "
                "with another scale than their gradients have: move it behind the loop"
            )
            return message, Severity.WARNING if _is_filtered(source, step) else Severity.ERROR, None
    return None


def updated_again(source: SourceFile, flow: Flow, update: Event) -> tuple[str, Severity, Event] | None:
    """An update before another one of the same iteration, which steps another optimizer or nothing in between."""
    for later in flow.of("update", scaler=update.scaler):
        same_iteration = later is not update and flow.loops(later) == flow.loops(update)
        if not same_iteration or flow.path(update, later, same_iteration=True) is None or sets_scale(later):
            continue
        steps = flow.of("step", scaler=update.scaler)
        before = [step for step in steps if flow.may_reach(step, update, same_iteration=True)]
        if not any(flow.path(step, update, same_iteration=True) for step in before):
            continue
        checks = [*steps, *flow.of("unscale")]
        if not any(_may_lie_between(flow, update, event, later) for event in checks):
            return _second(update), Severity.ERROR, later
        for step in steps:
            if _is_other(source, step, before) and _lies_between(flow, update, step, later):
                return (*_judge(flow, update, step), later)
    return None


def before_the_step(flow: Flow, update: Event) -> tuple[str, Severity, None] | None:
    """A step behind the update whose gradients are from before it, where nothing is stepped in between."""

    def stepped(event: Event) -> bool:
        return event.kind in ("step", "handed", "wrapper", "get_scale") or event.kind == "zero_grad"

    fresh = ("scale", "backward", "handed", "wrapper", "update", "zero_grad")
    for step in flow.of("step", scaler=update.scaler):
        if flow.path(update, step, without=fresh, same_iteration=True) is None:
            continue
        backwards = [event for event in flow.of("backward", scaler=update.scaler) if event.scaled]
        if any(flow.path(event, update, without=stepped, same_iteration=True) for event in backwards):
            name = update.scaler_name
            message = f"{name}.update() before {name}.step({step.optimizer_name}): update after the step"
            return message, Severity.ERROR, None
    return None


def without_a_step(source: SourceFile, flow: Flow, update: Event) -> tuple[str, Severity, None] | None:
    """An update on a path that skips the step, in a function that has all of the protocol.

    The blocks, not the flow, tell that no step stands before it: no path found is no proof that there is none.
    """
    found = [event for event in flow.events if event.kind in _CHECKS]
    own = {event.node for event in found if event.function is update.function and not event.calls}
    elsewhere = not source.shared(_checking_nodes) <= own
    steps = [event.node for event in flow.of("step", scaler=update.scaler)]
    others = [event.node for event in flow.of("update", scaler=update.scaler) if event is not update]
    if update.calls or elsewhere or not steps or not flow.of("scale", scaler=update.scaler):
        return None
    if any(runs_before(source, node, update.node) for node in own):
        return None
    if not all(any(runs_before(source, step, other) for other in others) for step in steps):
        return None  # the update may be for the step of the iteration or call before
    if flow.path(None, update, without=_CHECKS) is None:
        return None
    name = update.scaler_name
    message = f"{name}.update() with no step or unscale_ before it raises AssertionError: leave it out on this path"
    return message, Severity.ERROR, None


def _judge(flow: Flow, update: Event, step: Event) -> tuple[str, Severity]:
    scaler = update.scaler
    if flow.path(update, step, without=("scale", "backward"), same_iteration=True) is not None:
        return (
            f"{scaler}.update() before {scaler}.step({step.optimizer_name}), whose gradients carry the older "
            "scale: update once, after all steps"
        ), Severity.ERROR
    return (
        f"{scaler}.update() runs once per optimizer and again after {scaler}.step({step.optimizer_name}): "
        "update once, after all steps of the iteration"
    ), Severity.WARNING


def _checking_nodes(source: SourceFile) -> frozenset[ast.AST]:
    return frozenset(event.node for event in source.events if event.kind in _CHECKS)


def _second(update: Event) -> str:
    return (
        f"second {update.scaler_name}.update() with no step in between raises AssertionError: update once per iteration"
    )


def sets_scale(update: Event) -> bool:
    """Whether the update is given the scale, as for a scaler that is set by hand."""
    return isinstance(update.node, ast.Call) and bool(update.node.args or update.node.keywords)


def _varies(source: SourceFile, step: Event) -> bool:
    arguments = step.node.args if isinstance(step.node, ast.Call) else []
    return bool(arguments) and varies(source, arguments[0], step.calls)


def _is_filtered(source: SourceFile, step: Event) -> bool:
    """Whether the loop skips some optimizers, so that perhaps only one is stepped."""
    loops = source.loops_of(step.node)
    return bool(loops) and any(isinstance(item, ast.Continue) for part in loops[0].body for item in ast.walk(part))


def _lies_between(flow: Flow, start: Event, event: Event, end: Event) -> bool:
    return (
        flow.path(start, event, same_iteration=True) is not None
        and flow.path(event, end, same_iteration=True) is not None
    )


def _may_lie_between(flow: Flow, start: Event, event: Event, end: Event) -> bool:
    return flow.may_reach(start, event, same_iteration=True) and flow.may_reach(event, end, same_iteration=True)


def _is_other(source: SourceFile, step: Event, before: list[Event]) -> bool:
    """Whether the step is plainly of another optimizer than those stepped before."""
    if _varies(source, step) or any(_varies(source, item) for item in before):
        return False
    return not any(same_optimizer(step.optimizer, item.optimizer) for item in before)
