"""What the bounds of a model take for granted: the values of its batch, and those of its weights.

Inputs: ``--range``, else the extremes of the batch where ``make_batch`` gives real numbers, else their type. Weights:
as ``make_model`` makes them; those of a large model are not made, and the bounds of what initialised them stand in.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor

from amptune.analyze.assumed.initial import recorded_initialisers
from amptune.analyze.assumed.observe import channel_spread
from amptune.analyze.sitefacts.batchfacts import note_facts
from amptune.analyze.sitefacts.closedrows import mark_closed_rows
from amptune.analyze.sitefacts.constants import NodeBounds, range_of
from amptune.capture import Capture
from amptune.capture.fakes import new_fake_mode, parameters_as_fakes
from amptune.capture.forward import batch_names, repeatable
from amptune.capture.target import Target, call_arguments, tensors_in
from amptune.capture.usercode import quiet
from amptune.core.bounds.intervals import Range, symmetric
from amptune.core.bounds.ranges import Assumptions
from amptune.core.bounds.transfer.layers import Weight
from amptune.core.evidence import InputRange
from amptune.core.graph import PrecisionGraph
from amptune.errors import AmptuneError, UsageError

STATED = "--range"
LARGE = 50_000_000
"""Parameters from which the weights are not made: 200 MB, and a second or more to draw them."""
SMALL = 10_000_000
"""The same where nobody asked for ranges."""


@dataclasses.dataclass(frozen=True)
class Assumed:
    """All that is assumed.

    Attributes:
        assumptions: for the analysis.
        facts: those of them that rules take for granted: what the user stated, and the order of parameters.
        inputs: bounds of the tensors of the batch, by the names that the user knows.
        weights: how the bounds of the weights came about, in words.
        remarks: what is wrong with the batch or the weights, for the user to read.
    """

    assumptions: Assumptions
    facts: Assumptions
    inputs: tuple[InputRange, ...]
    weights: str
    remarks: tuple[str, ...] = ()


def assume(target: Target, capture: Capture, stated: Sequence[str] = (), *, asked: bool = False) -> Assumed:
    """Collect the assumptions about a captured target.

    Args:
        target: what was captured.
        capture: its capture, enriched.
        stated: ``--range`` arguments, as ``x=0:255``.
        asked: whether the user asked for ranges.

    Raises:
        UsageError: a range that does not read, or that names no tensor of the batch.
    """
    given = dict(parse_range(text) for text in stated)
    with quiet(), repeatable():
        batch = target.make_batch()
    model, weights, words = _model_and_weights(target, LARGE if asked else SMALL)
    inputs, by_place = _inputs(capture, batch, user_names(target, model, batch), given)
    facts = {place: each.range for place, each in by_place.items() if each.source == STATED}
    unknown = [name for name in given if name not in {each.name for each in inputs if each.source == STATED}]
    if unknown:
        known = ", ".join(each.name for each in inputs)
        raise UsageError(f"--range names {', '.join(unknown)}, which the batch does not have", hint=f"it has: {known}")
    bounds = {place: each.range for place, each in by_place.items()}
    buffers = NodeBounds(capture.graph_module, _owners(capture.graph)).stored()
    places = [str(node.target) for node in capture.graph_module.graph.nodes if node.op == "placeholder"]
    tensors = dict(zip(places, (tensor for _, tensor in batch_names(batch)), strict=False))
    mark_closed_rows(capture.graph, capture.graph_module, tensors)
    note_facts(capture.graph_module, tensors)
    means = {place: mean for place, each in tensors.items() if place not in facts and (mean := _mean(each)) is not None}
    remarks = tuple(not_numbers(user_names(target, model, batch), batch, model))
    return Assumed(
        Assumptions(bounds, weights, buffers, means=means), _facts(facts, weights), tuple(inputs), words, remarks
    )


def _facts(stated: Mapping[str, Range], weights: Mapping[str, Weight]) -> Assumptions:
    """What rules take for granted: what the user stated, and parameters that stay in the order of their first values.

    A parameter is taken to stay within twice its first magnitude plus 1: it may change its sign, and what is the
    logarithm of a scale may nearly triple the scale.
    """
    return Assumptions(stated, scales={name: symmetric(2 * each.range.magnitude + 1) for name, each in weights.items()})


def not_numbers(names: Mapping[int, str], batch: Any, model: nn.Module | None) -> Iterator[str]:
    """Tensors of the batch, and parameters, that hold NaN: whatever is computed from them says nothing.

    Args:
        names: id of a tensor of the batch -> what to call it, see ``user_names``.
        batch: from make_batch() or train_batches().
        model: whose parameters are looked at; none where it is None.
    """
    for own, tensor in batch_names(batch):
        if count := _nan_count(tensor):
            name = names.get(id(tensor), own)
            yield f"{name} of the batch holds {count} NaN among {tensor.numel()} numbers: clean it in make_batch()"
    for name, parameter in model.named_parameters() if model is not None else ():
        if count := _nan_count(parameter):
            yield f"the parameter {name} holds {count} NaN among {parameter.numel()} numbers as make_model() gives it"


def _nan_count(tensor: torch.Tensor) -> int:
    is_real = not isinstance(tensor, FakeTensor) and tensor.device.type != "meta" and not nn.parameter.is_lazy(tensor)
    if not is_real or not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.itemsize < 2:
        return 0
    with torch.no_grad():
        return int(tensor.detach().isnan().sum())


def _inputs(
    capture: Capture, batch: Any, names: Mapping[int, str], given: Mapping[str, Range]
) -> tuple[list[InputRange], dict[str, InputRange]]:
    """The tensors of the batch, and by the name of their placeholder."""
    places = [str(node.target) for node in capture.graph_module.graph.nodes if node.op == "placeholder"]
    inputs, by_place = [], {}
    for number, (own, tensor) in enumerate(batch_names(batch)):
        name = names.get(id(tensor), own)
        stated = given.get(name)
        found, source = (stated, STATED) if stated is not None else _of_tensor(tensor)
        each = InputRange(name, found, source, str(tensor.dtype).removeprefix("torch."))
        inputs.append(each)
        if number < len(places):
            by_place[places[number]] = each
    return inputs, by_place


def _owners(graph: PrecisionGraph) -> dict[str, str]:
    return {name: site.id for site in graph for name in site.nodes}


def parse_range(text: str) -> tuple[str, Range]:
    """``x=0:255`` as a name and a range; an end that is left out is unbounded.

    Raises:
        UsageError: it does not read so, or its ends are the wrong way round.
    """
    name, _, ends = text.partition("=")
    low, colon, high = ends.partition(":")
    try:
        found = Range(float(low) if low else -math.inf, float(high) if high else math.inf)
    except ValueError:
        colon = ""
    if not name or not colon:
        raise UsageError(f"--range {text} does not read", hint="write NAME=LOW:HIGH, such as --range x=0:255")
    if not found.low <= found.high:
        raise UsageError(f"--range {text}: {low} is not below {high}", hint="write the smaller number first")
    return name, found


def _of_tensor(tensor: torch.Tensor) -> tuple[Range, str]:
    kinds = {torch.bool: Range(0.0, 1.0), torch.uint8: Range(0.0, 255.0), torch.int8: Range(-128.0, 127.0)}
    if tensor.dtype in kinds:
        return kinds[tensor.dtype], "type"
    found = range_of(tensor)
    return (found, "batch") if found is not None else (Range(), "type")


def _mean(tensor: torch.Tensor) -> float | None:
    """How large the numbers of a tensor of the batch are on average; ``None`` where it has none."""
    has_numbers = not isinstance(tensor, FakeTensor) and tensor.device.type != "meta" and tensor.layout is torch.strided
    if not has_numbers or not tensor.numel() or tensor.is_complex() or tensor.dtype is torch.bool:
        return None
    return float(tensor.detach().double().abs().mean())


def user_names(target: Target, model: nn.Module | None, batch: Any) -> dict[int, str]:
    """id of a tensor of the batch -> the parameter of forward that it is given to."""
    names: dict[int, str] = {}
    if isinstance(batch, Mapping):
        names |= {id(value): str(key) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    elif isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
        names[id(batch[1])] = "targets"
    if model is not None and target.runner is None:
        for key, value in _bound(model, batch):
            for number, tensor in enumerate(tensors_in(value)):
                names[id(tensor)] = key if number == 0 else f"{key}.{number}"
    return names


def _bound(model: nn.Module, batch: Any) -> Iterator[tuple[str, Any]]:
    """The arguments of forward by name."""
    try:
        args, kwargs = call_arguments(model, batch)
        yield from inspect.signature(model.forward).bind(*args, **kwargs).arguments.items()
    except (TypeError, ValueError, AmptuneError):
        return  # the capture has told already what does not fit


def _model_and_weights(target: Target, largest: int) -> tuple[nn.Module | None, dict[str, Weight], str]:
    """The model, without memory where it is large, bounds of its parameters, and in words how they came about."""
    try:
        with quiet(), repeatable(), parameters_as_fakes(new_fake_mode()), recorded_initialisers() as initialisers:
            model = target.make_model()
    except AmptuneError:  # a constructor that reads weights: they are made in any case
        return _made(target)
    made = (parameter for parameter in model.parameters() if not nn.parameter.is_lazy(parameter))
    if sum(parameter.numel() for parameter in made) <= largest:
        return _made(target)
    named = model.named_parameters(remove_duplicate=False)
    found = {name: weight for name, tensor in named if (weight := initialisers.of(tensor)) is not None}
    return model, found, f"within their initialisers (normal ones to {initialisers.DEVIATIONS} deviations)"


def _made(target: Target) -> tuple[nn.Module | None, dict[str, Weight], str]:
    with quiet(), repeatable():
        model = target.make_model()
    named = model.named_parameters(remove_duplicate=False)
    found = {name: weight for name, tensor in named if (weight := weight_of(tensor)) is not None}
    return model, found, "as make_model() gives them"


def weight_of(tensor: torch.Tensor) -> Weight | None:
    """What there is to know of a real parameter; ``None`` for one that cannot be read."""
    if isinstance(tensor, FakeTensor) or nn.parameter.is_lazy(tensor) or not tensor.is_floating_point():
        return None
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    with torch.no_grad():
        values = tensor.detach().float()
        if values.device.type == "meta" or not values.numel() or not bool(values.isfinite().all()):
            return None
        low, high = torch.aminmax(values)
        rows = float(values.abs().flatten(1).sum(1).max()) if values.dim() > 1 else math.inf
        return Weight(Range(float(low), float(high)), rows, channel_spread(values))
