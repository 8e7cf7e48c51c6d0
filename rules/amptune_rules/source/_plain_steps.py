"""Which plain steps of an optimizer take gradients that carry a loss scale, with nothing that takes it out again."""

from __future__ import annotations

import ast

from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import asks_finiteness, is_gradient_scaler, varies

_OWN_SCALING = ("fp16", "mixedprecision", "scal", "bf16")


def reaches(source: SourceFile, flow: Flow, backward: Event, step: Event) -> bool:
    """Whether the gradients of a scaled loss come to the step without being written, cleared or stepped before."""
    scales = flow.of("scale", scaler=backward.scaler)
    if scales and not is_gradient_scaler(source, flow, backward.scaler, scales[0]):
        return False

    def other(event: Event) -> bool:
        if event.kind in ("grad_write", "get_scale", "wrapper", "autograd_grad"):
            return True
        if event.kind == "backward":
            return not event.scaled
        return event.kind in ("zero_grad", "step", "optimizer_step") and event.optimizer in ("", step.optimizer)

    return flow.path(backward, step, without=other, same_iteration=True) is not None


def handles_scale(source: SourceFile, step: Event) -> bool:
    """Whether the optimizer is one that unscales by itself, or is told the scaler, or may be any of several."""
    call = step.node
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return True
    told = [*call.args, *(item.value for item in call.keywords)]
    if any("scaler" in last_name(item).lower() for item in told):
        return True
    makers = [last_name(made.func).lower() for made in source.kinds.constructors_of(call.func.value)]
    names = [*makers, last_name(call.func.value).lower()]
    return any(word in name for name in names for word in _OWN_SCALING) or varies(source, call.func.value, step.calls)


def is_of_other_gradients(flow: Flow, backward: Event, step: Event) -> bool:
    """Whether the scaler steps another optimizer with these gradients, and only that one is ever cleared.

    An optimizer whose gradients nobody clears is not trained by the loss: it moves averages or target networks.
    """
    cleared = [event.optimizer for event in flow.of("zero_grad")]
    taken = {event.optimizer for event in flow.of("step", scaler=backward.scaler)} - {step.optimizer}
    return bool(cleared) and set(cleared) <= taken


def is_guarded(source: SourceFile, step: Event) -> bool:
    """Whether a condition around the step asks if the gradients are finite."""
    return any(isinstance(node, ast.If) and asks_finiteness(source, node.test) for node in source.ancestors(step.node))
