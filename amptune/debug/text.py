"""A debug run for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from amptune.debug.magnitude import number
from amptune.debug.record import Op
from amptune.debug.result import DebugResult, Extreme, Finding, LayerLoss, Underfed, location_of

Lines = Callable[[str], Sequence[str]]
_ROWS = 20
"""How many layers the table of losses shows, those that lose most."""
_LEAST = 0.0005
"""A share that would be shown as 0.0 %."""


def render(result: DebugResult, lines: Lines) -> str:
    """The report as text that ends in a line end; ``lines`` gives the lines of a source file, [] for none."""
    parts = [*(_finding(finding, result, lines) for finding in result.findings)]
    parts += _underfed(result.underfed, lines)
    if result.optimizer:
        parts.append(f"{result.optimizer['message']}\n  cure: {result.optimizer['cure']}")
    parts.append("\n".join(_summary(result)))
    table = _table(result.layers)
    parts += [table] if table else []
    parts += [_fp8_table(result)] if result.fp8 else []
    return "\n\n".join(parts) + "\n"


def _finding(finding: Finding, result: DebugResult, lines: Lines) -> str:
    culprit = finding.culprit
    scale = f", loss scale {number(finding.scale)}" if culprit.op.phase == "backward" else ""
    head = f"{_KINDS[culprit.kind]} in the {culprit.op.phase} of step {finding.step}{scale}: {culprit.words}"
    parts = [f"{_place(culprit.op)}: {head}", *_excerpt(culprit.op, lines)]
    if culprit.op.path:
        parts.append(f"  in {culprit.op.path}{f' (site {finding.site})' if finding.site != culprit.op.path else ''}")
    if finding.also:
        parts.append(f"  the same line runs in {_some(finding.also)}")
    if culprit.cause is not None:
        parts.append(f"  because of {_place(culprit.cause.op)}: {culprit.cause.words}")
        parts += _excerpt(culprit.cause.op, lines)
    if finding.absorbed:
        parts.append("  the loss and all gradients are finite nevertheless: what follows absorbs it")
    parts += [f"  {finding.remark}"] if finding.remark else []
    parts += list(_cures(finding, result))
    return "\n".join(parts)


def _cures(finding: Finding, result: DebugResult) -> Iterator[str]:
    if finding.culprit.kind == "not-precision":
        yield "  no precision setting can cure this: look at the data, the learning rate and this line in FP32 first"
        return
    if not finding.cures:
        yield "  nothing that was tried cures it"
        return
    first, *others = finding.cures
    run = "the step" if first.complete else "this op"
    tried = f"verified: {run} is finite with it"
    if first.changes and result.verified_steps:
        tried = f"verified: all {result.verified_steps} steps are finite with it"
    yield f"  cure: {first.words} ({tried})"
    for cure in others:
        yield f"  or:   {cure.words} (verified)"


def _underfed(found: Sequence[Underfed], lines: Lines) -> Iterator[str]:
    """One part a line; a cure that lines share stands behind the last of them."""
    shared = Counter(each.cure for each in found)
    left = Counter(shared)
    for each in found:
        place = f"{_place(each.op)}: " if each.op else ""
        parts = [f"{place}underflow in the backward: {each.words}", *(_excerpt(each.op, lines) if each.op else [])]
        parts += [f"  the same line starves {_some(each.also)}"] if each.also else []
        left[each.cure] -= 1
        if not left[each.cure]:
            of = f" of all {shared[each.cure]}" if shared[each.cure] > 1 else ""
            parts.append(f"  cure{of}: {each.cure}{' (verified)' if each.verified else ''}")
        yield "\n".join(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _summary(result: DebugResult) -> Iterator[str]:
    of = f" of {result.asked}" if result.steps != result.asked else ""
    steps = f"{result.steps}{of} {_steps(result.asked)}"
    if result.verdict == "clean":
        yield f"clean: {steps} in {result.dtype} without overflow, NaN or starved gradients"
    else:
        yield f"{steps} ran in {result.dtype}" + (" with the cures in force" if result.verified_steps else "")
    for kind in ("activation", "gradient"):
        if kind in result.margins:
            yield _margin(kind, result.margins[kind], result)
    scaler = result.scaler
    if scaler.get("enabled"):
        skipped = f", {scaler['skipped']} {_steps(scaler['skipped'])} skipped" if scaler["skipped"] else ""
        yield f"loss scale {number(scaler['final_scale'])} at the end{skipped}"
        if scaler["skipped"] == result.steps > 0:
            yield "every step was skipped: the scale has not settled yet, so raise --steps"


def _steps(number: int) -> str:
    return "step" if number == 1 else "steps"


def _margin(kind: str, extreme: Extreme, result: DebugResult) -> str:
    scaled = " (scaled)" if kind == "gradient" and result.scaler.get("enabled") else ""
    where = f"in {extreme.op.path}" if extreme.op.path else f"in {extreme.op.op}"
    place = location_of(extreme.op)
    at = f" ({place.path}:{place.line})" if place else ""
    return f"largest {kind}{scaled} {number(extreme.value)} of {number(result.limit)}, {where}{at}, step {extreme.step}"


def _table(layers: list[LayerLoss]) -> str:
    lossy = [layer for layer in layers if max(layer.activation_share, layer.gradient_share) >= _LEAST]
    if not lossy:
        return "lost to underflow: nothing" if layers else ""
    lossy.sort(key=lambda layer: -max(layer.gradient_share, layer.activation_share))
    width = max(len("layer"), *(len(layer.path or "(model)") for layer in lossy[:_ROWS]))
    rows = [f"{'lost to underflow':{width}s}  {'activations':>11s}  {'gradients':>9s}  {'of the norm':>11s}"]
    rows += [
        f"{layer.path or '(model)':{width}s}  {layer.activation_share:11.1%}  {layer.gradient_share:9.1%}  "
        f"{max(layer.gradient_norm, layer.activation_norm):11.1%}"
        for layer in lossy[:_ROWS]
    ]
    if len(lossy) > _ROWS:
        rows.append(f"and {len(lossy) - _ROWS} layers that lose less")
    return "\n".join(rows)


def _fp8_table(result: DebugResult) -> str:
    width = max(len("FP8 linear"), *(len(layer["module"]) for layer in result.fp8))
    head = f"{'FP8 linear':{width}s}  {'tensor':8s}  {'largest':>9s}"
    rows = [f"{head}  {'saturated':>9s}  {'unscaled':>8s}  {'underflow':>9s}"]
    for layer in result.fp8:
        for name in ("input", "weight", "gradient"):
            if name in layer:
                found = layer[name]
                head = f"{layer['module']:{width}s}  {name:8s}  {number(found['largest']):>9s}"
                shares = (found["saturated"], found["saturated_unscaled"], found["underflow"])
                rows.append(f"{head}  {shares[0]:9.2%}  {shares[1]:8.2%}  {shares[2]:9.2%}")
    rows.append("saturated: with the scale of the step before (delayed scaling); dynamic scales saturate nothing")
    return "\n".join(rows)


def _place(op: Op) -> str:
    place = location_of(op)
    return str(place) if place else op.path or "(model)"


def _excerpt(op: Op, lines: Lines) -> list[str]:
    place = location_of(op)
    text = lines(place.path) if place else []
    if place is None or not 0 < place.line <= len(text):
        return []
    line = text[place.line - 1].rstrip()
    end = place.end_column if place.end_line == place.line else len(line) + 1
    margin = "".join("\t" if character == "\t" else " " for character in line[: place.column - 1])
    caret = "^" * max(1, end - place.column)
    return [f"  {place.line} | {line}", f"  {' ' * len(str(place.line))} | {margin}{caret}"]


_KINDS = {
    "overflow": "overflow", "underflow": "underflow", "nan": "NaN", "constant": "literal out of range",
    "raises": "error", "not-precision": "not finite in FP32 either",
}  # fmt: skip
