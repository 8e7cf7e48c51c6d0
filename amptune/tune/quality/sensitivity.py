"""What each choice would do to each site, from the FP32 reference on the user's batch.

Two passes of the reference: the first takes magnitudes, which give the loss scale; in the second each site is computed
again by itself, in each choice, at the moment that backward reaches it. Nothing of a site is kept after that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from amptune.apply import held_values
from amptune.core.choice import FP32, Choice
from amptune.core.formats import Format
from amptune.core.scaler import GradientRecord, GradientStep, static_scale
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity, joined
from amptune.tune.prices.functioncalls import Place, is_function, places_of, watching
from amptune.tune.quality.gradients import exponent_histogram
from amptune.tune.quality.rounding import Result, SiteCall, floats_in, to_format
from amptune.tune.running.recipes import Candidate, backend_flags
from amptune.tune.running.state import dense
from amptune.tune.running.training import Workbench, loss_of, seed_everything, training

MAX_ROWS = 4096
"""Rows of a large input that a site is computed on; a stride spreads them over the batch."""

Seen = Callable[[str, SiteCall], None]


def measure_sensitivity(
    bench: Workbench,
    choices: Mapping[str, Sequence[Choice]],
    batch: Any,
    seed: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Sensitivity:
    """Error, overflow and magnitudes of every site in each of its ``choices``; weights are left as they were.

    The first call of a module speaks for all its calls. What a site's arithmetic raises leaves it out. Of a
    site that is a tensor, casting changes its own values and gradients.
    """
    magnitudes: dict[str, tuple[GradientStep, GradientStep, GradientStep]] = {}
    found: dict[str, SiteSensitivity] = {}

    def look(path: str, call: SiteCall) -> None:
        magnitudes[path] = _magnitudes(call)

    tensors = {path: tensor for path, tensor in held_values(bench.model).items() if path in choices}
    modules = {path: offered for path, offered in choices.items() if path not in tensors and not is_function(path)}
    functions = _functions_of(bench, choices, batch)
    of_weights = _pass(bench, modules, tensors, functions, batch, seed, look)
    scale = static_scale(GradientRecord((of_weights, *(gradients for _, _, gradients in magnitudes.values()))))

    def judge(path: str, call: SiteCall) -> None:
        progress(len(found), len(magnitudes))
        found[path] = _judge(_sampled(call), choices[path], magnitudes[path], scale)

    def judge_held() -> None:
        for path, tensor in tensors.items():
            found[path] = _judge_held(tensor, choices[path], scale)

    _pass(bench, modules, tensors, functions, batch, seed, judge, judge_held)
    return Sensitivity(found, scale)


def _functions_of(bench: Workbench, sites: Iterable[str], batch: Any) -> dict[Place, str]:
    """Where the products stand that a forward computes itself."""

    def run() -> None:
        with bench.no_gradients():
            loss_of(bench, Candidate("fp32"), batch)

    with training(bench, Candidate("fp32")):
        return places_of(bench.model, [site for site in sites if is_function(site)], run)


def _pass(
    bench: Workbench,
    paths: Mapping[str, object],
    tensors: Mapping[str, torch.Tensor],
    functions: Mapping[Place, str],
    batch: Any,
    seed: int,
    seen: Seen,
    after: Callable[[], None] = lambda: None,
) -> GradientStep:
    """Forward and backward of the FP32 reference; ``seen`` gets the first call of each site with its gradients, and
    ``after`` is called while ``tensors`` have theirs.

    Returns the magnitudes of the sites' weight gradients, which FP16 has to hold as well.
    """
    with training(bench, Candidate("fp32")), backend_flags(False):
        seed_everything(seed)
        with _watched(bench.model, paths, functions, seen):
            loss_of(bench, Candidate("fp32"), batch).backward()
        after()
        holders = [*paths, *(path for path, _, _ in functions)]
        parameters = (p for path in holders for p in bench.model.get_submodule(path).parameters())
        weights = (p.grad for p in itertools.chain(parameters, tensors.values()))
        return joined(GradientStep(*exponent_histogram(grad)) for grad in weights if grad is not None)


@contextmanager
def _watched(
    model: nn.Module, paths: Mapping[str, object], functions: Mapping[Place, str], seen: Seen
) -> Iterator[None]:
    watch = _Watch(seen)
    handles = [model.get_submodule(path).register_forward_hook(watch.hook(path), with_kwargs=True) for path in paths]
    try:
        with watching(model, functions.values(), functions, lambda site, *call: watch.hook(site)(*call)):
            yield
    finally:
        for handle in handles:
            handle.remove()
        watch.close()


class _Watch:
    """Forward hooks that wait for the gradient of a site's outputs, and then let the site be looked at.

    To be closed after the backward: a hook that is left and the node of the graph that it is on hold each other, and
    with them the site's inputs: 10 GiB of BERT-base's (32 x 512), which were in what its trials were told to take.
    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._handles: list[RemovableHandle] = []
        self._done: set[str] = set()
        self._busy = False

    def hook(self, path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            outputs = floats_in(output)
            # A site that is computed again runs its own hooks; checkpointing calls it without gradients first.
            if self._busy or path in self._done or not outputs or not torch.is_grad_enabled():
                return
            self._done.add(path)
            versions = [tensor._version for tensor in floats_in((args, kwargs))]

            def look(grads: Sequence[torch.Tensor | None]) -> None:
                # What was overwritten since is no longer what the site read.
                if [tensor._version for tensor in floats_in((args, kwargs))] == versions:
                    self._look(path, SiteCall(module, args, kwargs, [None if g is None else g.detach() for g in grads]))

            if any(tensor.requires_grad for tensor in outputs):
                self._handles.append(register_multi_grad_hook(outputs, look))
            else:
                look([None] * len(outputs))

        return after

    def close(self) -> None:
        """Let go of what the hooks hold."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _look(self, path: str, call: SiteCall) -> None:
        self._busy = True
        try:
            with torch.random.fork_rng(devices=_devices_of(call)):
                self._seen(path, call)
        except Exception:  # the layer's code may be the user's
            return  # this site has no such form here: it stays without an entry
        finally:
            self._busy = False


def _devices_of(call: SiteCall) -> list[torch.device]:
    devices = {tensor.device for tensor in floats_in((call.args, dict(call.kwargs)))}
    return [device for device in devices if device.type == "cuda"]


def _sampled(call: SiteCall) -> SiteCall:
    """The call on at most ``MAX_ROWS`` rows, where rows are computed alike: Linear, LayerNorm and RMSNorm."""
    x, rest = (call.args[0], call.args[1:]) if call.args else (None, ())
    if type(call.module) not in (nn.Linear, nn.LayerNorm, nn.RMSNorm) or rest or call.kwargs:
        return call
    if not isinstance(x, torch.Tensor) or x.dim() < 2:
        return call
    width = 1 if isinstance(call.module, nn.Linear) else len(call.module.normalized_shape)  # type: ignore[arg-type]
    rows = math.prod(x.shape[:-width])
    step = max(1, rows // MAX_ROWS)

    def sample(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.detach().reshape(rows, *tensor.shape[tensor.dim() - width :])[::step]
        return flat.requires_grad_(tensor.requires_grad)

    grads = [None if g is None else sample(g) for g in call.grad_outputs]
    return SiteCall(call.module, (sample(x),), {}, grads)


def _magnitudes(call: SiteCall) -> tuple[GradientStep, GradientStep, GradientStep]:
    def of(tensors: Sequence[torch.Tensor]) -> GradientStep:
        histograms = [exponent_histogram(tensor) for tensor in tensors]
        return joined(GradientStep(amax, counts) for amax, counts in histograms)

    return (
        of(floats_in((call.args, dict(call.kwargs)))),
        of(list(call.module.parameters())),
        of([g for g in call.grad_outputs if g is not None]),
    )


def _judge(
    call: SiteCall, choices: Sequence[Choice], magnitudes: tuple[GradientStep, GradientStep, GradientStep], scale: float
) -> SiteSensitivity:
    seed = torch.initial_seed() % 2**63

    def run(compute: Callable[[], Result]) -> Result:
        torch.manual_seed(seed)  # a dropout inside a site must drop the same elements each time
        return compute()

    def rounded(choice: Choice) -> Result:
        return run(lambda: call.rounded(choice, scale))

    return _compared(run(call.exact), rounded, choices, magnitudes, scale)


def _judge_held(tensor: torch.Tensor, choices: Sequence[Choice], scale: float) -> SiteSensitivity:
    """As ``_judge``, for a tensor that reads as a cast of itself: its values, and its gradient where it has one."""
    exact = Result([tensor.detach()], [], [] if tensor.grad is None else [dense(tensor.grad)])

    def rounded(choice: Choice) -> Result:
        number_format, factor = choice.output_format, scale if choice.format is Format.FP16 else 1.0
        grads = [to_format(grad * factor, number_format) / factor for grad in exact.weight_grads]
        return Result([to_format(tensor.detach(), number_format)], [], grads)

    values = GradientStep(*exponent_histogram(tensor))
    gradient = joined(GradientStep(*exponent_histogram(grad)) for grad in exact.weight_grads)
    return _compared(exact, rounded, choices, (values, values, gradient), scale)


def _compared(
    exact: Result,
    rounded: Callable[[Choice], Result],
    choices: Sequence[Choice],
    magnitudes: tuple[GradientStep, GradientStep, GradientStep],
    scale: float,
) -> SiteSensitivity:
    errors: dict[Choice, RoundingError] = {}
    vetoes: dict[Choice, str] = {}
    for choice in choices:
        if choice == FP32:
            continue
        result = rounded(choice)
        if veto := _overflow(exact, result, choice, magnitudes, scale):
            vetoes[choice] = veto
        else:
            errors[choice] = RoundingError(
                _relative(exact.outputs, result.outputs),
                _relative(exact.input_grads, result.input_grads),
                _relative(exact.weight_grads, result.weight_grads),
            )
    outputs = [GradientStep(*exponent_histogram(tensor)) for tensor in exact.outputs]
    activations, weights, gradients = magnitudes
    return SiteSensitivity(errors, vetoes, joined([activations, *outputs]), weights, gradients)


def _overflow(
    exact: Result,
    rounded: Result,
    choice: Choice,
    magnitudes: tuple[GradientStep, GradientStep, GradientStep],
    scale: float,
) -> str:
    """Which tensor overflows and where it reaches; empty when none does. What is not finite in FP32 is no overflow."""
    kinds = [
        ("the output reaches", exact.outputs, rounded.outputs, 1.0),
        ("the gradient of the input reaches", exact.input_grads, rounded.input_grads, scale),
        ("the gradient of a weight reaches", exact.weight_grads, rounded.weight_grads, scale),
    ]
    limit = choice.format.max if not choice.format.is_fp8 else Format.BF16.max
    for what, before, after, factor in kinds:
        if _finite(after) or not _finite(before):
            continue
        reached = max((tensor.abs().max().item() for tensor in before if tensor.numel()), default=0.0)
        shown, scaled = reached * (factor if choice.format is Format.FP16 else 1.0), ""
        if what != kinds[0][0] and choice.format is Format.FP16 and factor != 1.0:
            scaled = f" under a loss scale of {scale:g}"
        if shown <= limit:
            inputs = max(step.amax_log2 for step in magnitudes[:2])
            what, shown, scaled = "an input or weight reaches", 2.0**inputs, ""
        return f"overflows: {what} {shown:,.0f}{scaled}, {choice.format} ends at {limit:,.0f}"
    return ""


def _finite(tensors: Sequence[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _relative(exact: Sequence[torch.Tensor], rounded: Sequence[torch.Tensor]) -> float:
    """Norm of the difference over norm of the exact value, all tensors together; 0 where there is nothing."""
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(exact, rounded, strict=True))
    size = sum(float(a.double().square().sum()) for a in exact)
    return math.sqrt(difference / size) if size > 0 and math.isfinite(difference) else 0.0
