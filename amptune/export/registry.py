"""Every target by name; a module is imported when its target is asked for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import cast

from amptune.core.nearest import nearest
from amptune.core.plan import Plan
from amptune.errors import UsageError
from amptune.export.export import Export
from amptune.export.model import ModelFile

Exporter = Callable[[Plan, ModelFile], Export]


@dataclasses.dataclass(frozen=True)
class Target:
    """A trainer or library that plans are written for.

    Attributes:
        name: as ``--to`` takes it.
        file: a usual name of the file that is written.
        summary: what the file holds.
    """

    name: str
    file: str
    summary: str

    def exporter(self) -> Exporter:
        """The function that writes the file's text."""
        module = importlib.import_module(f"amptune.export.targets.{self.name.replace('-', '_')}")
        return cast("Exporter", module.export)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("pytorch", "train.py", "training loop: scaler, accumulation, clipping, checkpoints"),
        Target("accelerate", "train_accelerate.py", "Accelerator with the plan in force, GradScalerKwargs"),
        Target("transformers", "train_trainer.py", "TrainingArguments and, for FP16, a Trainer"),
        Target("deepspeed", "ds_config.json", "configuration, with the lines that start the engine"),
        Target("lightning", "train_lightning.py", "precision plugin with the GradScaler, LightningModule"),
        Target("fsdp2", "shard.py", "fully_shard with a MixedPrecisionPolicy for each block"),
        Target("torchao", "float8.py", "float8 training of the planned linears, the rest of the plan around it"),
        Target("torchtitan", "float8_config.py", "Float8LinearConverter.Config with filter_fqns"),
        Target("transformer-engine", "te.py", "te.Linear with a recipe for each FP8 module"),
        Target("megatron", "precision.yaml", "flags and the per-module --te-precision-config-file"),
        Target("ms-swift", "swift.yaml", "arguments of swift sft and of Megatron-SWIFT"),
        Target("keras", "keras_policy.py", "DTypePolicyMap and LossScaleOptimizer"),
        Target("jax", "jax_policy.py", "jmp policy for each module, loss scale"),
        Target("apex", "train_native.py", "what an apex O1 or O2 script becomes in native AMP"),
        Target("bitsandbytes", "bnb.py", "4-bit weights whose compute dtype is the plan's"),
    )
}


def target_named(name: str) -> Target:
    """The target called ``name``.

    Raises:
        UsageError: there is none; the nearest is named.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = nearest(name, TARGETS)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(TARGETS)};"
    raise UsageError(f"there is no export target {name!r}", hint=f"{hint} amptune export --list shows them all")
