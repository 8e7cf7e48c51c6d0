"""The frontends: torch.export, a recorded forward on fake tensors, a recorded forward on real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx

from amptune.capture.calls import CallRecorder
from amptune.capture.export import Stamper, export
from amptune.capture.fakerecord import FakeRecorder
from amptune.capture.fakes import FakeRules, fake_batch
from amptune.capture.forward import Prepared, batch_names, one_thread, repeatable, run
from amptune.capture.memory import available_bytes, readable_bytes
from amptune.capture.modulestack import ModuleCall, ModuleStack
from amptune.capture.prepare import prepare_fake, prepare_real, weight_bytes
from amptune.capture.quickfakes import QuickFakes
from amptune.capture.record import GraphRecorder
from amptune.capture.shrink import SMALL, common_batch_size, cut, grow
from amptune.capture.target import Target, batch_tensors
from amptune.capture.usercode import describe
from amptune.errors import CaptureError

LARGE_RUN = 10**11
"""Weights times numbers in the batch from which a real forward runs with a small batch: about a minute on a CPU."""


class TooLargeError(CaptureError):
    """The model would have to run for real, and does not fit into memory."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A captured forward: its graph, the model that ran, whether the user's loss is in it, and whether that loss (or
    the output, without one) requires a gradient."""

    module: fx.GraphModule
    prepared: Prepared
    has_loss: bool
    has_gradient: bool


class Frontends:
    """The ways to capture one target.

    Args:
        target: what to capture.
        train: whether the model is in training mode.
        say: told how far a long run is.

    Attributes:
        notes: what each of them had to assume.
        recorder: that of the run in progress, or of the last one, for what it says about a failure.
        module_count: modules of the model that ran last.
    """

    def __init__(self, target: Target, *, train: bool, say: Callable[[str], None] | None = None) -> None:
        self.target = target
        self.train = train
        self._say = say
        self.notes: list[str] = []
        self.recorder: CallRecorder | None = None
        self.module_count = 0

    @property
    def failed_in(self) -> tuple[ModuleCall | None, tuple[object, ...]]:
        """The innermost module whose call raised in the last run, and what it was given."""
        failed = self.recorder.stack.failed if self.recorder else None
        return (failed[0], (*failed[1], *failed[2].values())) if failed else (None, ())

    @property
    def in_loss(self) -> bool:
        """Whether the last run had come to the loss."""
        return self.recorder is not None and self.recorder.in_loss

    def export(self) -> Recorded:
        """torch.export of model and loss, on fake tensors."""
        prepared, mode = prepare_fake(self.target, train=self.train, notes=self.notes)
        prepared = dataclasses.replace(prepared, batch=fake_batch(prepared.batch, mode, all_tensors=True))
        stamper = Stamper(self._stack(prepared))
        self.recorder = stamper
        with repeatable(), one_thread():
            module, has_loss = export(prepared, stamper)
        return Recorded(module, prepared, has_loss, stamper.has_gradient)

    def record_fake(self) -> Recorded:
        """A forward on fake tensors: nothing is computed, no memory is used."""
        prepared, mode = prepare_fake(self.target, train=self.train, notes=self.notes)
        recorder = FakeRecorder(prepared.model, self._stack(prepared), mode)
        with FakeRules(mode), QuickFakes(mode).watch(), one_thread():
            return self._record(prepared, recorder)

    def record_real(self) -> Recorded:
        """A real forward; with a small batch where the full one would take long.

        Raises:
            TooLargeError: the weights alone do not fit into memory.
        """
        self._check_memory()
        prepared = prepare_real(self.target, train=self.train, notes=self.notes)
        size = common_batch_size(prepared.batch)
        if size is not None and _is_large_run(prepared):
            try:
                return self._record_small(prepared, size)
            except Exception as error:  # code that counts on its batch size: the whole batch tells what is wrong
                self.notes.append(f"the whole batch had to run, since with {SMALL[0]} samples: {describe(error)}")
        return self._record(prepared, GraphRecorder(prepared.model, self._stack(prepared)))

    def _record_small(self, prepared: Prepared, size: int) -> Recorded:
        first, second = (
            self._record(small, GraphRecorder(small.model, self._stack(small)))
            for small in (dataclasses.replace(prepared, batch=cut(prepared.batch, few)) for few in SMALL)
        )
        shown = f"the forward ran with {SMALL[0]} of the {size} samples"
        if grow(first.module.graph, second.module.graph, size):
            self.notes.append(f"{shown}; shapes were continued to all of them")
        else:
            self.notes.append(f"{shown}, and shapes are those of {SMALL[0]}: its path depends on the samples")
        return first

    def _record(self, prepared: Prepared, recorder: GraphRecorder) -> Recorded:
        self.recorder = recorder
        recorder.say = self._say or recorder.say
        for name, tensor in batch_names(prepared.batch):
            recorder.add_input(name, tensor)
        with repeatable():
            outputs, has_loss = run(prepared, recorder)
        return Recorded(recorder.module(outputs), prepared, has_loss, recorder.has_gradient)

    def _stack(self, prepared: Prepared) -> ModuleStack:
        self.module_count = sum(1 for _ in prepared.model.modules())
        return ModuleStack(prepared.model)

    def _check_memory(self) -> None:
        prepared, _ = prepare_fake(self.target, train=self.train, notes=[])
        needed, free = weight_bytes(prepared.model), available_bytes()
        if needed > free // 2:
            raise TooLargeError(
                f"{self.target.name} needs a real run, since its path depends on the data, but its weights take "
                f"{readable_bytes(needed)} and {readable_bytes(free)} are free",
                hint="use a smaller configuration of the same model: fewer layers have the same findings",
            )


def _is_large_run(prepared: Prepared) -> bool:
    numbers = max(tensor.numel() for tensor in batch_tensors(prepared.batch))
    return numbers * sum(param.numel() for param in prepared.model.parameters()) > LARGE_RUN
