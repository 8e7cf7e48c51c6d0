"""What the child process that owns the device does before the first trial: it builds the model once, trains the FP32
reference, and measures what a search stands on.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator

from amptune.apply.handoff import patch_spec
from amptune.capture import Target, load_target
from amptune.capture.target import batch_tensors
from amptune.core.choice import FP32
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.core.sensitivity import Sensitivity
from amptune.core.tables import CostTable
from amptune.patch.spec import PatchSpec
from amptune.tune.choices.buildspace import build_space
from amptune.tune.choices.ownautocast import own_dtype_note
from amptune.tune.choices.space import COMPILED_LOSS, Space
from amptune.tune.choices.structure import check_structure
from amptune.tune.prices.costs import measure_costs, with_held
from amptune.tune.prices.followers import follower_prices, this_gpu, with_followers
from amptune.tune.prices.losses import measure_losses, measure_update
from amptune.tune.prices.modelloss import ModelLoss
from amptune.tune.quality.quality import misled
from amptune.tune.quality.reference import Reference, broken_note, measure_reference, noise_note
from amptune.tune.quality.sensitivity import measure_sensitivity
from amptune.tune.running.batches import Batches, load_batches
from amptune.tune.running.childprocess import is_fatal
from amptune.tune.running.compilation import BACKEND, Compilation, compile_apart, is_dear
from amptune.tune.running.device import Device
from amptune.tune.running.float8 import missing_note
from amptune.tune.running.lowparams import check_params
from amptune.tune.running.recipes import Candidate, stock_candidates
from amptune.tune.running.recompiling import num_compiled
from amptune.tune.running.training import Workbench, eager, seed_everything, training
from amptune.tune.workers.job import Job, Prepared
from amptune.tune.workers.parts import Parts, parts_of

Report = Callable[[str, int, int], None]
Hold = Callable[[bool], None]
"""Told when the reference begins to train, and when it is done: that is no time of the request it is for."""


class Preparing:
    """The requests of a worker before the first trial."""

    def __init__(self, job: Job, report: Report, hold: Hold = lambda _is_held: None) -> None:
        self.options = job.options
        self.report, self.hold = report, hold
        self.pins = job.pins
        self.device = Device(job.options.device)
        check_params(job.options.params, self.device)
        seed_everything(job.options.seed)
        self.target: Target = load_target(job.options.target, source=job.trial_source)
        self.bench = Workbench.build(self.target, self.device, job.options.seed, job.codes, job.trial_source)
        check_structure(self.target, self.bench.model, job.parameters)
        self.bench.takes_gradients = job.takes_gradients
        backend = job.options.compile_with
        self.bench.backend = backend or BACKEND
        self._compiles_trials = backend is not None and not is_dear(self.bench.model)
        if backend and self._compiles_trials:
            self.bench.compilation = Compilation(backend)
        elif backend or self.device.is_cuda:
            compile_apart()
        self.batches: Batches = load_batches(self.target, job.options.steps, self.device.torch)
        self.model_loss = ModelLoss(self.bench, self.batches.train[0])
        self._versions = self._batch_versions()
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference:
        """The FP32 run, done at the first use."""
        if self._reference is None:
            self.report("training the FP32 reference", 0, 0)
            self.hold(True)
            self.bench.compiles_itself = self._compiles_something()
            with eager(self.bench):
                found = measure_reference(self.bench, self.batches, self.options.tolerance, self.options.seed)
            self._reference = dataclasses.replace(found, hold=self.hold)
            # What is there now stays, and is more than the user's own process holds: its garbage collector would look
            # through all of it in the middle of a timed step.
            gc.collect()
            gc.freeze()
            self.hold(False)
        return self._reference

    def prepare(self) -> Prepared:
        """Run the reference."""
        reference = self.reference
        return Prepared(
            self.device.describe(),
            reference.noise,
            reference.initial_loss,
            sum(reference.losses) / len(reference.losses),
            self.batches.quality_data,
            (
                *self.target.notes,
                *filter(None, [missing_note(self.device, self.bench.model), *self._notes_of_the_model()]),
            ),
        )

    def _notes_of_the_model(self) -> Iterator[str]:
        """What the reference has shown of the user's code."""
        yield from filter(
            None, (own_dtype_note(self.bench.model), noise_note(self.reference), broken_note(self.reference))
        )
        if not self.bench.evaluates:
            yield (
                f"the model gives no loss in eval mode ({self.bench.eval_error}): its held-back loss is taken in train "
                "mode, without dropout"
            )
        if self._batch_versions() != self._versions:
            yield (
                "the model or its loss writes into the batch (as x.sub_(...) does), so that each trial gets what "
                "earlier ones left of it: write x = x - ... in its place"
            )

    def _batch_versions(self) -> list[int]:
        """How often each tensor of the first batch was written to."""
        return [tensor._version for tensor in batch_tensors(self.batches.train[0]) if not tensor.is_inference()]

    def space(self, graph: PrecisionGraph) -> Space:
        """The search space, which depends on the live modules."""
        with eager(self.bench):
            losses = self._losses()
            space = build_space(self.bench, graph, self.batches.train[0], pins=self.pins, losses=losses)
            if not self._can_compile_model_loss():
                return space
            return dataclasses.replace(space, losses=losses or ("fp32", COMPILED_LOSS), makes_loss=True)

    def patch_spec(self, graph: PrecisionGraph) -> PatchSpec:
        """Where the plan goes in the user's file, or in a file of its own for a model from a package."""
        return patch_spec(self.target, self.bench.model, graph)

    def recipes(self) -> list[Candidate]:
        """The stock recipes that this device can run for this model."""
        return stock_candidates(self.device, self.bench.model, self.options.params)

    def can_compile_loss(self) -> bool:
        """Whether a recipe can have its loss under torch.compile beside a model that is not."""
        with eager(self.bench):
            return COMPILED_LOSS in self._losses() or self._can_compile_model_loss()

    def parts(self) -> Parts:
        """What of the model a plan can have compiled by itself; none in eager mode, or where the user's code compiles
        parts itself. And whether trials compile any."""
        backend = self.options.compile_with
        self.prepare()
        if backend is None:
            return Parts()
        with eager(self.bench):
            parts = parts_of(self.bench.model, backend, makes_loss=self.model_loss.is_made)
        return dataclasses.replace(parts, paths=()) if self.bench.compiles_itself else parts

    def costs(self, space: Space, graph: PrecisionGraph) -> CostTable:
        """Measure the cost table of the sites of ``space``; ``graph`` says how often each is called."""
        held = space.held()
        groups = {site: group for group in space.module_groups() for site in group.sites if site not in held}
        calls = {site: graph[site].calls if site in graph else 1 for site in groups}
        choices = {site: group.site_choices(site) for site, group in groups.items()}

        def progress(done: int, total: int) -> None:
            self.report("measuring sites", done, total)

        fused, batch = self._compiles_trials, self.batches.train[0]
        # What runs in an autocast region has no choice of its own there, and follows what arrives.
        planned = {site for group in space.groups if group.kind != "region" for site in group.sites}
        raised = frozenset[str]().union(*(group.raised for group in space.groups))
        formats = {FP32, *(choice for offered in choices.values() for choice in offered)}
        with eager(self.bench, keeps_own=True):
            table = measure_costs(
                self.bench, calls, batch, choices, progress,
                fused=fused, layouts=space.channels_last, tf32=space.tf32,
            )  # fmt: skip
            table = with_held(table, self.bench.model, space)
            halves = sorted({c.output_format for c in formats} - {Format.FP32}, key=list(Format).index)
            backend = self.options.compile_with or BACKEND
            losses = measure_losses(self.bench, batch, space.losses, halves[0], backend) if halves else {}
            if halves and space.makes_loss:
                made = self.model_loss.measure(space.losses, halves[0], backend)
                losses = {choice: ms + losses.get(choice, 0.0) for choice, ms in made.items()} or losses
            update, scaling = measure_update(self.bench) or (None, 0.0)
        gpu = this_gpu(self.device.torch.type)
        prices = follower_prices(graph, planned, [Format.FP32, Format.TF32, *halves], gpu, fused=fused, raised=raised)
        # Without prices of what follows the sites, the optimizer is not all that a step takes beside them.
        update = update if prices and not fused and (losses or self.target.loss_fn is None) else None
        return with_followers(dataclasses.replace(table, losses=losses, update=update, scaling=scaling), prices)

    def sensitivity(self, space: Space) -> Sensitivity:
        """What each choice would do to each site of ``space``."""
        choices = {site: group.site_choices(site) for group in space.module_groups() for site in group.sites}

        def progress(done: int, total: int) -> None:
            self.report("measuring rounding errors", done, total)

        with eager(self.bench):  # each site is looked at by a hook, for which a compiler would compile again
            return measure_sensitivity(self.bench, choices, self.batches.train[0], self.options.seed, progress)

    def fragile(self) -> dict[str, tuple[str, ...]]:
        """16-bit format -> the parameters whose gradients miss their bar under autocast in it.

        Not FP16 on a CPU, which may take a hundred times as long.
        """
        found: dict[str, tuple[str, ...]] = {}
        for candidate in self.recipes():
            low = candidate.autocast
            if low is None or candidate.float8 or (low is Format.FP16 and not self.device.is_cuda):
                continue
            self.report("comparing gradients under autocast", 0, 0)
            try:
                found[low.label] = misled(self.bench, candidate, self.batches, self.reference, self.options.seed)
            except Exception as error:  # the user's model may not run under autocast, as the recipe's trial will say
                if is_fatal(error):
                    raise
        return found

    def _compiles_something(self) -> bool:
        """Whether the user's model or loss compiles anything when it runs."""
        before = num_compiled()
        with eager(self.bench, keeps_own=True), training(self.bench, Candidate("fp32")) as run:
            run.loss(self.batches.train[0])
        return num_compiled() > before

    def _losses(self) -> tuple[str, ...]:
        """Choices for the loss. Compiling it needs a C++ compiler on a CPU, so only compile mode offers it there."""
        if self.target.loss_fn is None:
            return ()
        can_compile = self.device.is_cuda or self.options.compile_with is not None
        return ("fp32", "follow", COMPILED_LOSS) if can_compile else ("fp32", "follow")

    def _can_compile_model_loss(self) -> bool:
        """Whether compiling the loss that the model makes itself is a choice: trials that are compiled do it anyway."""
        is_choice = self.device.is_cuda and not self._compiles_trials
        return is_choice and self.model_loss.is_made
