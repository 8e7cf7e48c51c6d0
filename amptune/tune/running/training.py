"""One training run under a candidate: the model, its optimizer, its scaler, and the step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from amptune.apply import apply
from amptune.capture.prepare import run_lazy_layers
from amptune.capture.target import Target
from amptune.capture.untrained import FROZEN, FROZEN_HINT
from amptune.capture.usercode import place_of
from amptune.core.formats import Format
from amptune.errors import CaptureError
from amptune.runtime import compile_kept_loss, keep_loss, loss_in, losses_compiled, undo_plan
from amptune.tune.running.backwardplace import say_where
from amptune.tune.running.batches import Batches, to_device
from amptune.tune.running.compilation import BACKEND, Compilation, as_written, compiled, own_code_of_autocast
from amptune.tune.running.device import Device
from amptune.tune.running.dropout import DropoutOff
from amptune.tune.running.float8 import float8_linears
from amptune.tune.running.keeping import bytes_beside, fits_beside, on_host
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.running.lowparams import Lowered, parameters_in
from amptune.tune.running.recipes import Candidate, autocast_region, backend_flags
from amptune.tune.running.state import Attributes, set_state, tensors_of

SCHEDULED_HINT = "return the optimizer and not its scheduler: trials have no schedule"
ONE_OPTIMIZER_HINT = (
    "return one optimizer for all parameters; parts that train in other ways are groups of it: "
    'torch.optim.Adam([{"params": first}, {"params": second, "lr": 1e-4}])'
)


@dataclasses.dataclass
class Workbench:
    """One model on the device and the state it starts every run from.

    There is a single model: a candidate is applied to it, trained, and undone, so that memory holds one model only.
    ``compilation`` says how torch.compile runs it; None is eager mode. ``backend`` compiles losses, where no plan says
    otherwise. ``has_dropout`` is None until a run has shown it, and ``dropout_off`` is set while dropout is switched
    off. ``takes_gradients``: the forward or the loss does.
    ``compiles_itself``: the user's own code puts something under torch.compile when it runs.
    ``evaluates``: the model gives a loss in eval mode too; a detector gives its loss in train mode alone.
    ``eval_error``: why not; empty where it does.
    ``shake`` is what a step's forward and backward run in: see shaking.py.
    ``kept``: what is held on the device beside the model, by name, the initial weights among it.
    """

    target: Target
    device: Device
    model: nn.Module
    initial: dict[str, torch.Tensor]
    attributes: Attributes
    codes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str | None = None
    compilation: Compilation | None = None
    backend: str = BACKEND
    has_dropout: bool | None = None
    dropout_off: DropoutOff | None = None
    takes_gradients: bool = False
    compiles_itself: bool = False
    evaluates: bool = True
    eval_error: str = ""
    shake: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    kept: dict[str, Mapping[str, torch.Tensor]] = dataclasses.field(default_factory=dict)
    _targets: dict[tuple[Format | None, str | None], Target] = dataclasses.field(default_factory=dict)

    @classmethod
    def build(
        cls,
        target: Target,
        device: Device,
        seed: int,
        codes: Mapping[str, str] | None = None,
        source: str | None = None,
    ) -> Workbench:
        """The target's model with weights from ``seed``, in train mode.

        ``codes``: site id of each functional op -> its place in ``source``, for the ops that a plan pins.
        """
        seed_everything(seed)
        model = target.make_model().to(device.torch)
        model.train()
        run_lazy_layers(target, model, lambda: to_device(target.make_batch(), device.torch))
        bench = cls(target, device, model, {}, Attributes(model), codes or {}, source)
        bench.initial = bench.keep("initial", tensors_of(model))
        return bench

    def keep(self, name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies of tensors like the model's, in place of those kept under this name before.

        On the device, or on the host where such copies are a good part of the device's memory.
        """
        self.kept.pop(name, None)  # first, so that the device holds one copy
        found = {key: self._copy(tensor) for key, tensor in tensors.items()}
        self.kept[name] = found
        return found

    @functools.cached_property
    def _copy(self) -> Callable[[torch.Tensor], torch.Tensor]:
        size = sum(tensor.nbytes for tensor in tensors_of(self.model).values())
        return torch.clone if fits_beside(size, self.device.memory_bytes()) else on_host

    def peak_memory(self, batches: Batches) -> int | None:
        """Highest number of bytes that training held since the last reset, without what is kept for judging.

        None on a CPU, where torch does not count.
        """
        peak = self.device.peak_memory()
        return None if peak is None else max(0, peak - bytes_beside(self.kept.values(), batches))

    def target_with_loss(self, loss_format: Format | None, backend: str | None) -> Target:
        """The target with its ``loss_fn`` decorated as the patched file decorates it; kept, so compiled once.

        ``backend``: of torch.compile, None for an eager loss.
        """
        key = (loss_format, backend)
        if key not in self._targets:
            loss_fn = self.target.loss_fn
            if loss_fn is not None:
                label = loss_format.label if loss_format else None
                loss_fn = loss_in(label, compile=bool(backend), backend=backend or BACKEND)(loss_fn)
            self._targets[key] = dataclasses.replace(self.target, loss_fn=loss_fn)
        return self._targets[key]

    def without_dropout(self) -> contextlib.AbstractContextManager[object]:
        """Dropout off, where it is to be."""
        return self.dropout_off or contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """The backward of a loss, which runs checkpointed layers once more: as they ran in the forward."""
        if self.dropout_off is None:
            loss.backward()
        else:
            self.dropout_off.backward(loss)

    def no_gradients(self) -> contextlib.AbstractContextManager[object]:
        """For a forward without a backward: no graph is kept, unless the forward or the loss needs one itself."""
        return contextlib.nullcontext() if self.takes_gradients else torch.no_grad()

    def restore(self, state: dict[str, torch.Tensor] | None = None) -> None:
        """Set weights and buffers to ``state``, by default the initial one, and drop the gradients."""
        set_state(self.model, self.initial if state is None else state)
        self.model.zero_grad(set_to_none=True)
        self.model.train()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def make_optimizer(target: Target, model: nn.Module, device: Device) -> torch.optim.Optimizer:
    """The user's optimizer, else AdamW with a learning rate of 3e-4, fused where the parameters are real.

    Raises:
        CaptureError: ``make_optimizer`` raises or returns something else than an optimizer, or one whose ``step`` takes
            a closure and cannot do without.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise CaptureError(FROZEN, hint=FROZEN_HINT)
    if target.make_optimizer is None:
        fits = all(p.is_floating_point() for p in trainable)  # the fused kernel takes no complex numbers
        return torch.optim.AdamW(trainable, lr=3e-4, fused=fits)
    try:
        optimizer = target.make_optimizer(trainable)
    except Exception as error:
        raise CaptureError(f"make_optimizer(params) raised {plain_reason(error, place_of(error))}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise CaptureError(
            f"make_optimizer(params) returned {type(optimizer).__name__}, not a torch.optim.Optimizer",
            hint=SCHEDULED_HINT if hasattr(optimizer, "optimizer") else ONE_OPTIMIZER_HINT,
        )
    _check_step(optimizer)
    return optimizer


def _check_step(optimizer: torch.optim.Optimizer) -> None:
    """Raise CaptureError unless ``optimizer.step()`` may be called without arguments."""
    parameters = inspect.signature(optimizer.step).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if needed := [p.name for p in parameters if p.default is p.empty and p.kind in positional]:
        raise CaptureError(
            f"make_optimizer(params) returned {type(optimizer).__name__}, whose step() needs {', '.join(needed)}: "
            "here a step is one forward, one backward and one step() without arguments",
            hint="return an optimizer from make_optimizer whose step() takes no closure, such as torch.optim.AdamW",
        )


def loss_of(bench: Workbench, candidate: Candidate, batch: Any) -> torch.Tensor:
    """Forward and loss of one batch under the candidate, which must already be applied to the model."""
    with autocast_region(candidate, bench.device):
        with bench.without_dropout(), _called_loss(bench, candidate):
            output = bench.target.call(bench.model, batch)
        return loss_of_output(bench, candidate, output, batch)


def loss_of_output(bench: Workbench, candidate: Candidate, output: Any, batch: Any) -> torch.Tensor:
    """The loss of an output in the candidate's loss format; an autocast recipe must be in force already.

    In compile mode the model is compiled, as ``model.compile()`` does it: a ``loss_fn`` of the user's is not part of
    the model, so it is compiled only where the candidate says so, as in eager mode.
    """
    plan = candidate.plan
    loss_format = plan.loss_format if plan else Format.FP32 if candidate.params else None
    backend = _backend(bench, candidate) if candidate.compiles_loss else None
    if loss_format is None and backend is None:
        return bench.target.loss(output, batch)
    return bench.target_with_loss(loss_format, backend).loss(output, batch)


class Run:
    """Training under one candidate, from the workbench's current weights. Use ``training`` to make one."""

    def __init__(self, bench: Workbench, candidate: Candidate, lowered: Lowered | None = None) -> None:
        self.bench = bench
        self.candidate = candidate
        optimizer = make_optimizer(bench.target, bench.model, bench.device)
        self.optimizer = lowered.stepped_by(optimizer) if lowered else optimizer
        config = candidate.scaler
        self.scaler = torch.amp.GradScaler(
            bench.device.torch.type,
            init_scale=config.init_scale,
            growth_factor=config.growth_factor,
            backoff_factor=config.backoff_factor,
            growth_interval=config.growth_interval,
            enabled=config.enabled,
        )
        self.steps = 0
        self.skipped = 0

    def loss(self, batch: Any) -> torch.Tensor:
        """Forward and loss of one batch, in the candidate's formats."""
        return loss_of(self.bench, self.candidate, batch)

    def step(self, batch: Any) -> torch.Tensor:
        """One whole training step; the loss comes back on the device, so that nothing waits for it."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.bench.shake():
            loss = self.loss(batch)
            self.backward(self.scaler.scale(loss), batch)
        self.update()
        return loss.detach()

    def backward(self, loss: torch.Tensor, batch: Any) -> None:
        """The backward of the loss of a batch. Where formats clash in it, the error has the place in the forward."""
        try:
            self.bench.backward(loss)
        except Exception as error:
            say_where(error, lambda: self.bench.backward(self.loss(batch)))
            raise

    @property
    def waits_for_device(self) -> bool:
        """Whether the scaler asks the device in each step if something overflowed: fused optimizers do so there."""
        return self.scaler.is_enabled() and not getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def update(self) -> None:
        """The optimizer's part of a step, and the scaler's."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def counted_step(self, batch: Any) -> torch.Tensor:
        """A step that also counts whether the scaler skipped it, which waits for the device: not for timing."""
        before = self.scaler.get_scale()
        loss = self.step(batch)
        self.steps += 1
        self.skipped += self.scaler.get_scale() < before
        return loss


@contextlib.contextmanager
def eager(bench: Workbench, *, keeps_own: bool = False) -> Iterator[None]:
    """Set compile mode aside: for the FP32 reference and for recordings, which a compiler would hide things from.

    Nor is anything else compiled, unless ``keeps_own``: losses are compiled by themselves, and so are functions of the
    user's.
    """
    with _compiled_as(bench, None), contextlib.nullcontext() if keeps_own else as_written():
        yield


@contextlib.contextmanager
def still(bench: Workbench) -> Iterator[None]:
    """Dropout off, so that candidates are compared on the same network; a model without any is left alone.

    In eager mode: a compiled model draws its masks in its own way, and would be compiled again for this. A loss that a
    candidate has compiled stays so: it is judged as it ships.
    """
    if bench.has_dropout is False or bench.dropout_off is not None:
        yield
        return
    with eager(bench, keeps_own=not bench.compiles_itself):
        bench.dropout_off = DropoutOff()
        try:
            yield
            bench.has_dropout = bench.dropout_off.used
        finally:
            bench.dropout_off = None


@contextlib.contextmanager
def whole(bench: Workbench, backend: str | None) -> Iterator[None]:
    """In compile mode, compile the whole model, as the user will run it; without a backend nothing changes."""
    with _compiled_as(bench, Compilation(backend, "whole") if backend else None):
        yield


@contextlib.contextmanager
def _compiled_as(bench: Workbench, compilation: Compilation | None) -> Iterator[None]:
    before, bench.compilation = bench.compilation, compilation
    try:
        yield
    finally:
        bench.compilation = before


@contextlib.contextmanager
def training(bench: Workbench, candidate: Candidate, state: dict[str, torch.Tensor] | None = None) -> Iterator[Run]:
    """A run from ``state`` (default: the initial weights), with the candidate in force; undone on leaving."""
    bench.restore(state)
    bench.attributes.restore(bench.model)  # not while a plan is in force, which sets some itself
    swapped = float8_linears(bench.model, candidate.float8) if candidate.float8 else contextlib.nullcontext()
    if bench.compilation is None:
        candidate = candidate.as_written()  # compile mode is set aside, if this is it
    # What a plan compiles in parts is not compiled otherwise, and its loss as in eager mode; nor is what stays eager.
    own = _compiled_as(bench, None) if candidate.in_parts or candidate.eager else contextlib.nullcontext()
    within = bench.compilation is not None and candidate.autocast is not None
    with own, backend_flags(candidate.tf32), swapped, parameters_in(bench.model, candidate.params) as lowered:
        plan = candidate.plan
        applied = apply(bench.model, plan, codes=bench.codes, source=bench.source) if plan else None
        compiling = _compile_kept_loss(bench, candidate)
        try:
            with own_code_of_autocast(within), compiled(bench.model, bench.compilation):
                yield Run(bench, candidate, lowered)
        finally:
            if applied is not None:
                applied.undo()
            elif compiling:
                undo_plan(bench.model)
            bench.model.zero_grad(set_to_none=True)


def _compile_kept_loss(bench: Workbench, candidate: Candidate) -> bool:
    """Compile the loss that the model makes itself where the candidate says so, and beside compiled blocks: the user's
    own torch.compile has it in the model's graph. Whether there is one to compile."""
    is_said = candidate.loss_compile or _is_beside_blocks(bench)
    modules = keep_loss(bench.model) if is_said else []
    for module in modules:
        compile_kept_loss(module, _backend(bench, candidate))
    return bool(modules)


def _called_loss(bench: Workbench, candidate: Candidate) -> contextlib.AbstractContextManager[None]:
    """The same for a cross entropy that the forward calls; for the forward alone, since a ``loss_fn`` is no part of the
    user's graph, and is compiled by itself."""
    is_compiled = _is_beside_blocks(bench) or (candidate.compiles_loss and bench.compilation is None)
    return losses_compiled(_backend(bench, candidate)) if is_compiled else contextlib.nullcontext()


def _is_beside_blocks(bench: Workbench) -> bool:
    return bench.compilation is not None and bench.compilation.scope == "blocks"


def _backend(bench: Workbench, candidate: Candidate) -> str:
    """What compiles a loss: the backend of the plan, which ships with it; beside a recipe that of the search."""
    return candidate.plan.backend if candidate.plan else bench.backend
