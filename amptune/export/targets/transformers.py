"""transformers v5: the precision fields of TrainingArguments, and a Trainer that keeps an FP16 plan in force."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import python_file, scaler_arguments
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import half_autocast

_FILE = """\
{imports}

PRECISION = {{
    "bf16": {bf16},
    "fp16": {fp16},
    "tf32": {tf32}
}}


def training_arguments(output_dir="out", **kwargs):
    \"\"\"TrainingArguments with the plan's precision; the other arguments are yours.\"\"\"
    args = TrainingArguments(output_dir=output_dir, **PRECISION, **kwargs)
    args.mixed_precision = "{mixed_precision}"  # whatever `accelerate launch --mixed_precision` says
    return args


{trainer}\
def make_trainer(train_dataset, args=None, **kwargs):
    \"\"\"A Trainer of the planned model.\"\"\"
    args = args or training_arguments()
    return {trainer_class}(model={builder}(), args=args, train_dataset=train_dataset, **kwargs)
"""

_TRAINER = '''\
class PlanTrainer(Trainer):
    """fp16=True is for the loss scaler alone: autocast is off, since the precision of each layer is in the model."""

    def create_accelerator_and_postprocess(self):
        """The Accelerator of the Trainer, told not to enter autocast, with the tuned loss scaler."""
        super().create_accelerator_and_postprocess()
        self.accelerator.autocast_handler = AutocastKwargs(enabled=False)
{scaler}

'''
_SCALER = """\
        scaler = self.accelerator.scaler  # None where Accelerate has none: on a CPU, under DeepSpeed
        if scaler is not None:
            settings = dict({settings})
            settings["scale"] = settings.pop("init_scale")
            scaler.load_state_dict({{**settings, "_growth_tracker": 0}})
"""

_IN_FORCE = (
    "The Trainer enters autocast where bf16 or fp16 is set, or ACCELERATE_MIXED_PRECISION in the environment; here "
    "neither reaches the model. Do not add bf16=True: it would undo the plan."
)


def export(plan: Plan, model: ModelFile) -> Export:
    """bf16, fp16 and tf32 are all that TrainingArguments has; the rest is in the patched model."""
    low = half_autocast(plan)
    scaled = plan.scaler.enabled
    trainer = _trainer(plan, autocast=bool(low)) if scaled else ""
    imports = [
        *(["import torch"] if plan.tf32 else []),
        *(["from accelerate.utils import AutocastKwargs"] if trainer and not low else []),
        "from transformers import Trainer, TrainingArguments",
    ]
    code = _FILE.format(
        imports="\n".join([*imports, "", model.imports(original=bool(low))]),
        bf16=low is Format.BF16,
        fp16=scaled,
        tf32="torch.cuda.is_available(),  # True raises where there is no TF32" if plan.tf32 else "False,",
        trainer=trainer,
        trainer_class="PlanTrainer" if trainer else "Trainer",
        builder=model.original_builder if low else model.builder,
        mixed_precision=low.label if low else "fp16" if scaled else "no",
    )
    return python_file(
        f"TrainingArguments for {model.original}", plan, model, code, lost=_lost(plan, model, low),
        notes=_notes(model, low, scaled),
    )  # fmt: skip


def _trainer(plan: Plan, *, autocast: bool) -> str:
    settings = scaler_arguments(plan.scaler)
    text = _TRAINER.format(scaler=_SCALER.format(settings=settings))
    if autocast:
        text = text.replace("        self.accelerator.autocast_handler = AutocastKwargs(enabled=False)\n", "")
        text = text.replace(", told not to enter autocast, with", " with")
        text = text.replace(": autocast is off, since the precision of each layer is in the model", "'s settings")
    return text


def _notes(model: ModelFile, low: Format | None, scaled: bool) -> tuple[str, ...]:
    if low:
        return ("The plan is stock autocast, which the Trainer has itself: the model needs no patch.",)
    notes = (
        f"{model.module}.py and amptune_runtime.py belong beside this file.",
        _IN_FORCE,
    )
    return (*notes, "On a CPU the Trainer has no loss scaling: FP16 plans are for GPUs.") if scaled else notes


def _lost(plan: Plan, model: ModelFile, low: Format | None) -> list[Lost]:
    lost = []
    if not low and plan.sites:
        lost.append(
            Lost(
                "TrainingArguments has one precision for the whole model",
                f"The formats of {len(plan.sites)} sites come with {model.module}.py, which is what is trained here.",
            )
        )
    if plan.scaler.enabled:
        lost.append(
            Lost(
                "TrainingArguments has no field for the loss scaler",
                "PlanTrainer sets it; with DeepSpeed, export to deepspeed and put its numbers into ds_config.json.",
            )
        )
    if model.has("loss_fn"):
        lost.append(
            Lost(
                "The Trainer takes the loss from the model's output, not from loss_fn(output, batch)",
                "Return it from forward when labels are given, or override Trainer.compute_loss.",
            )
        )
    return lost
