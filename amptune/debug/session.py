"""The debug run: trains, stops at what goes wrong, explains and cures it, and goes on with the cure."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch

from amptune.capture.failure import LOSS_HINT
from amptune.core.formats import Format
from amptune.core.ops import Autocast, op_named
from amptune.core.plan import ScalerConfig
from amptune.debug.cures import Cure, Outcome, find_cures
from amptune.debug.diagnose import Culprit, find_culprit, masks
from amptune.debug.emulate import Emulation
from amptune.debug.fp8 import Fp8Linears
from amptune.debug.losses import Losses
from amptune.debug.optimizer import optimizer_failure
from amptune.debug.passes import Pass, Preserved, Stage
from amptune.debug.record import Rewrite
from amptune.debug.result import DebugResult, Extreme, Finding
from amptune.debug.scaling import find_underfed
from amptune.debug.sites import same_line, site_of
from amptune.errors import CaptureError
from amptune.tune.running.batches import Batches
from amptune.tune.running.device import Device
from amptune.tune.running.recipes import Candidate, backend_flags
from amptune.tune.running.training import Run, Workbench

MOST_FINDINGS = 8
"""After that many culprits the run ends: a model that needs more is not debugged line by line."""
LOOKS = 5
"""How many steps are looked at in detail, spread over the run."""


@dataclasses.dataclass(frozen=True)
class DebugOptions:
    """What to run.

    Attributes:
        dtype: fp16, bf16 or fp8.
        scaler: whether the loss is scaled.
        steps: training steps.
        seed: of the weights and of what is drawn in a step.
        optimizer_state: of the checkpoint that the run starts from, if it holds one.
    """

    dtype: Literal["fp16", "bf16", "fp8"]
    scaler: bool
    steps: int = 20
    seed: int = 0
    optimizer_state: Any = None


class Session:
    """One debug run over one model."""

    def __init__(self, bench: Workbench, batches: Batches, options: DebugOptions) -> None:
        self.bench = bench
        self.batches = batches
        self.notes: list[str] = []
        self.options = options = self._without_scaler(options)
        self.format = Format.FP16 if options.dtype == "fp16" else Format.BF16
        candidate = Candidate(
            f"autocast-{self.format.label}", autocast=self.format, scaler=ScalerConfig(enabled=options.scaler)
        )
        self.stage = Stage(bench, candidate, self.format, Emulation())
        self.fp8 = Fp8Linears() if options.dtype == "fp8" else None
        self.changes: tuple[Rewrite, ...] = ()
        self.losses = Losses()
        self._known: set[tuple[Any, ...]] = set()
        self._skipped = 0
        self._looked = 0
        self.result = DebugResult(
            bench.target.spec.text, options.dtype, bench.device.name, options.steps, limit=self.format.max,
            notes=self.notes,
        )  # fmt: skip

    def _without_scaler(self, options: DebugOptions) -> DebugOptions:
        """The options with the scaler off where GradScaler would raise."""
        low = next((p.dtype for p in self.bench.model.parameters() if p.dtype is torch.float16), None)
        if not options.scaler or low is None:
            return options
        self.notes.append(
            "parameters are in fp16, whose gradients GradScaler refuses to unscale, so the loss is not scaled; "
            "keep the parameters in FP32 and let autocast lower them"
        )
        return dataclasses.replace(options, scaler=False)

    def run(self) -> DebugResult:
        """Train until the steps are done or nothing cures what went wrong.

        Raises:
            CaptureError: the model does not run in FP32.
        """
        self._check_runs()
        with backend_flags(False):
            run = self._make_run()
            for step, batch in enumerate(self.batches.train):
                if not self._step(run, step, batch):
                    break
                self.result.steps += 1
            self._finish(run)
        return self.result

    def _make_run(self) -> Run:
        run = Run(self.bench, self.stage.candidate)
        if self.options.optimizer_state is not None:
            try:
                run.optimizer.load_state_dict(self.options.optimizer_state)
            except (ValueError, KeyError, RuntimeError) as error:
                self.result.notes.append(f"the checkpoint's optimizer state does not fit and is left out: {error}")
        run.scaler.scale(torch.zeros((), device=self.bench.device.torch))  # it makes its scale when first used
        return run

    def _check_runs(self) -> None:
        high = self._pass(self.batches.train[0], 0, twin=True)
        if high.error is not None:
            place = f"{high.error.place}: " if high.error.place else ""
            if high.in_loss:
                raise CaptureError(f"{place}loss_fn(output, batch) failed: {high.error}", hint=LOSS_HINT)
            raise CaptureError(f"{place}the model does not run in FP32: {high.error}")

    @property
    def _rewrites(self) -> tuple[Rewrite, ...]:
        return (*((self.fp8,) if self.fp8 else ()), *self.changes)

    def _pass(self, batch: Any, step: int, **how: Any) -> Pass:
        """A pass that leaves buffers and gradients as they were."""
        how.setdefault("rewrites", () if how.get("twin") else self._rewrites)
        with Preserved(self.bench):
            return self.stage.run(batch, self.options.seed + step, **how)

    def _step(self, run: Run, step: int, batch: Any) -> bool:
        """One training step, again after each cure; False where nothing cures it."""
        while True:
            scale = run.scaler.get_scale()
            with Preserved(self.bench) as before:
                done = self.stage.run(batch, self.options.seed + step, scale=scale, rewrites=self._rewrites)
                if done.finite or self._only_the_scale(done, step, batch):
                    before.keep()
                    break
            if not self._diagnose(step, batch, scale=1.0 if self.options.scaler else scale):
                return False
        if done.finite and self._looks_left(step) and not self._look(step, batch, scale):
            return False
        self._note_extremes(done, step)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        self._skipped += run.scaler.get_scale() < scale
        return not self._broken_by_optimizer(run, step)

    def _broken_by_optimizer(self, run: Run, step: int) -> bool:
        """Whether the optimizer made a weight NaN or infinite out of finite ones and finite gradients."""
        named = self.bench.model.named_parameters()
        found = next(((name, p) for name, p in named if not bool(torch.isfinite(p).all())), None)
        if found is None:
            return False
        self.result.optimizer = optimizer_failure(run.optimizer, *found, step)
        return True

    def _only_the_scale(self, done: Pass, step: int, batch: Any) -> bool:
        """Whether gradients overflow only because the loss is scaled: the scaler skips the step, which is normal."""
        if not self.options.scaler or done.error is not None or done.scale <= 1.0 or not math.isfinite(done.loss):
            return False
        return self._pass(batch, step, scale=1.0).finite

    def _looks_left(self, step: int) -> bool:
        """Whether a step is to be looked at in detail: a few, spread over the run, and the last."""
        due = round(self._looked * (self.options.steps - 1) / (LOOKS - 1)) if LOOKS > 1 else 0
        return step >= due and self._looked < LOOKS

    def _look(self, step: int, batch: Any, scale: float) -> bool:
        """Compare a step that trains with its twin: what underflows, and what overflows without being noticed."""
        self._looked += 1
        low = self._pass(batch, step, scale=scale, detail=True)
        high = self._pass(batch, step, scale=scale, detail=True, twin=True)
        if not high.finite:
            return self._add(find_culprit(low, high, self.format), low, high, step, batch, absorbed=False)
        self.losses.add(low, high, self.format, step, scale)
        culprit = find_culprit(low, high, self.format)
        # In the backward an infinity that no gradient shows is the scaler's to find: it looks at those that are left.
        noticed = culprit is not None and culprit.op.phase == "forward" and not masks(culprit.op, culprit.twin)
        if culprit is not None and noticed and _place_of(culprit) not in self._known:
            self._known.add(_place_of(culprit))
            self._add(culprit, low, high, step, batch, absorbed=True)
        return True

    def _diagnose(self, step: int, batch: Any, scale: float) -> bool:
        """Explain a step that fails and put its cure in force; False where there is none."""
        low = self._pass(batch, step, scale=scale, detail=True)
        high = self._pass(batch, step, scale=scale, detail=True, twin=True)
        return self._add(find_culprit(low, high, self.format), low, high, step, batch, absorbed=False)

    def _add(self, culprit: Culprit | None, low: Pass, high: Pass, step: int, batch: Any, *, absorbed: bool) -> bool:
        if culprit is None:
            what = "not finite, but no op of its own stands out"
            if low.error is not None:
                where = f" at {low.error.place}" if low.error.place else ""
                what = f"the model raises in {self.format}{where} though it runs in FP32: {low.error}"
            self.result.notes.append(f"step {step}: {what}")
            self.result.unexplained = True
            return False
        cures: list[Cure] = []
        if culprit.kind != "not-precision":
            cures = self._cures(culprit, low, high, step, batch)
        forward = [op for op in low.ops if op.phase == "forward"]
        blamed = culprit.to_blame
        if blamed.phase == "backward" and blamed.call is not None:
            blamed = low.ops[blamed.call]
        finding = Finding(
            culprit, step, low.scale, site_of(blamed, forward), tuple(cures), absorbed, same_line(blamed, forward),
            _remark(culprit, self.bench.device),
        )  # fmt: skip
        self.result.findings.append(finding)
        usable = next((cure for cure in cures if cure.changes), None)
        if usable is None or len(self.result.findings) >= MOST_FINDINGS:
            return False
        self.changes = (*self.changes, *usable.changes)
        return True

    def _cures(self, culprit: Culprit, low: Pass, high: Pass, step: int, batch: Any) -> list[Cure]:
        def attempt(changes: tuple[Rewrite, ...]) -> Outcome:
            tried = self._pass(
                batch, step, scale=low.scale, detail=True, rewrites=(*self._rewrites, *changes)
            )  # fmt: skip
            left = find_culprit(tried, high, self.format)
            if left is None or (tried.finite and masks(left.op, left.twin)):
                return "cured" if tried.finite else "same"
            return "same" if _no_further(left, culprit) else "moved"

        found = find_cures(culprit, low, self.format, attempt)
        if self.format is Format.FP16:
            bf16 = Candidate("autocast-bf16", autocast=Format.BF16)
            if self._pass(batch, step, candidate=bf16).finite:
                found.append(Cure("bf16", "train in bf16: torch.autocast(..., dtype=torch.bfloat16), no scaler"))
        return found

    def _note_extremes(self, done: Pass, step: int) -> None:
        for op in done.ops:
            if op.phase == "backward" and not done.finite:
                continue
            kind = "activation" if op.phase == "forward" else "gradient"
            for magnitude in op.outputs:
                known = self.result.margins.get(kind)
                low = magnitude.dtype == self.format.torch_name and magnitude.finite
                if low and (known is None or magnitude.amax > known.value):
                    self.result.margins[kind] = Extreme(magnitude.amax, op, step)

    def _finish(self, run: Run) -> None:
        result = self.result
        if result.steps and not self._looked:  # the scaler skipped every step so far
            self._look(result.steps - 1, self.batches.train[result.steps - 1], scale=1.0)
        result.scaler = {
            "enabled": self.options.scaler, "final_scale": run.scaler.get_scale(), "skipped": self._skipped,
        }  # fmt: skip
        result.layers = self.losses.layers()
        if self.changes and result.steps == self.options.steps:
            result.verified_steps = result.steps
        if result.steps and result.verdict != "not-precision":
            self._find_underfed(run)
        emulation = self.stage.emulation
        if emulation.products:
            result.notes.append(
                f"on this CPU products of {self.format} matrices are computed in FP32 and rounded, as tensor cores do"
            )
        if emulation.missing:
            names = ", ".join(sorted(emulation.missing))
            result.notes.append(f"no {self.format} kernel here, so computed in FP32 and rounded: {names}")
        if self.fp8:
            result.fp8 = self.fp8.to_json()
            result.notes.append(self.fp8.note)

    def _find_underfed(self, run: Run) -> None:
        batch, step = self.batches.train[-1], len(self.batches.train) - 1

        def check(scale: float, changes: tuple[Rewrite, ...]) -> Losses | None:
            """Losses of one more pass at another scale; None where it overflows."""
            low = self._pass(batch, step, scale=scale, detail=True, rewrites=(*self._rewrites, *changes))
            if not low.finite:
                return None
            losses = Losses()
            losses.add(low, self._pass(batch, step, scale=scale, detail=True, twin=True), self.format, step, scale)
            return losses

        self.result.underfed = find_underfed(
            self.losses, self.format, scaled=self.options.scaler, scale=run.scaler.get_scale(), check=check
        )  # fmt: skip


def _remark(culprit: Culprit, device: Device) -> str:
    """Where a CPU's autocast lowers an op that a GPU's keeps in FP32, the failure is not the GPU's."""
    kept = op_named(culprit.op.op).cuda in (Autocast.FP32, Autocast.FP32_OUT)
    if device.is_cuda or not kept or culprit.op.phase != "forward" or culprit.kind in ("not-precision", "raises"):
        return ""
    return (
        f"on a GPU torch.autocast computes {culprit.op.op} in FP32: this fails there in a model cast to 16 bits alone"
    )


def _place_of(culprit: Culprit) -> tuple[Any, ...]:
    return culprit.op.phase, culprit.op.spot


def _no_further(left: Culprit, culprit: Culprit) -> bool:
    """Whether what is wrong after a change is wrong at the same place or before it."""
    if left.kind == "raises" or left.op.spot == culprit.op.spot:
        return True
    if left.op.phase != culprit.op.phase:
        return left.op.phase == "forward"
    return left.op.index < culprit.op.index
