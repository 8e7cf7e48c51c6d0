"""Lightning: a precision plugin that scales the loss and never enters autocast."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import (
    feed_import,
    loop_parts,
    optimizer_of,
    python_file,
    scaler_arguments,
    standard_imports,
)
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import half_autocast

_FILE = """\
{standard_imports}import lightning as L
import torch
{plugin_import}from torch.utils.data import DataLoader, IterableDataset

{imports}

{plugin}
class PlannedModule(L.LightningModule):
    \"\"\"The model as a LightningModule.\"\"\"

    def __init__(self):
        super().__init__()
        self.model = {builder}()

    def training_step(self, batch, batch_idx):
        \"\"\"The loss of one batch.\"\"\"
        model = self.model
        output = {output}
        loss = {loss}
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        \"\"\"The optimizer.\"\"\"
        return {optimizer}


{feed}{batches}

class Batches(IterableDataset):
    \"\"\"``batches()`` as Lightning takes it; put your DataLoader in its place.\"\"\"

    def __iter__(self):
        \"\"\"Whole batches.\"\"\"
        return batches()


def make_trainer(device="cuda", **kwargs):
    \"\"\"A Trainer with the plan's precision; ``device`` is "cpu", "cuda", ...\"\"\"
{scaler}    return L.Trainer(accelerator=device, {precision}, **kwargs)


def main():
    {flags}
    trainer = make_trainer("cuda" if torch.cuda.is_available() else "cpu", max_steps=200, gradient_clip_val=1.0)
    trainer.fit(PlannedModule(), DataLoader(Batches(), batch_size=None))


if __name__ == "__main__":
    main()
"""

_PLUGIN = '''
class PlanPrecision(MixedPrecision):
    """Scales the loss for the plan's FP16 sites. No autocast: the precision of each layer is in the model."""

    def __init__(self, device):
        scaler = torch.amp.GradScaler(
            device,
            {arguments},
        )
        super().__init__("16-mixed", device, scaler=scaler)

    @contextmanager
    def forward_context(self):
        """A region in which autocast is off."""
        with torch.autocast(self.device, enabled=False):
            yield

    def optimizer_step(self, optimizer, model, closure, **kwargs):
        """As usual; a fused optimizer leaves the unscaling to the scaler, else nothing could be clipped before."""
        optimizer._step_supports_amp_scaling = False
        return super().optimizer_step(optimizer, model, closure, **kwargs)

'''

_NO_PRECISION = (
    "Do not set precision= to a 16-bit mode: 'bf16-mixed' enters autocast around the plan, 'bf16-true' casts the FP32 "
    "parameters."
)


def export(plan: Plan, model: ModelFile) -> Export:
    """A LightningModule and a Trainer whose precision plugin is the plan's scaler."""
    low = half_autocast(plan)
    own_plugin = plan.scaler.enabled and not low
    arguments = scaler_arguments(plan.scaler).replace(", ", ",\n            ")
    uses_mixed = own_plugin or low is Format.FP16
    code = _FILE.format(
        **loop_parts(plan, model, original=bool(low)),
        standard_imports=standard_imports(
            feed_import(model), "from contextlib import contextmanager\n" if own_plugin else ""
        ),
        plugin_import="from lightning.pytorch.plugins.precision import MixedPrecision\n" if uses_mixed else "",
        plugin=_PLUGIN.format(arguments=arguments) if own_plugin else "",
        optimizer=optimizer_of(model, "self.parameters()"),
        precision=_precision(plan, low),
        scaler=f"    scaler = torch.amp.GradScaler(\n        device, {scaler_arguments(plan.scaler)}\n    )\n"
        if low is Format.FP16
        else "",
    )
    return python_file(f"Lightning for {model.original}", plan, model, code, lost=_lost(plan), notes=_notes(model, low))


def _precision(plan: Plan, low: Format | None) -> str:
    if low is Format.BF16:
        return 'precision="bf16-mixed"'
    if low is Format.FP16:
        return 'plugins=[MixedPrecision("16-mixed", device, scaler=scaler)]'
    return "plugins=[PlanPrecision(device)]" if plan.scaler.enabled else 'precision="32-true"'


def _notes(model: ModelFile, low: Format | None) -> tuple[str, ...]:
    if low:
        return ("The plan is stock autocast, which Lightning has itself: the model needs no patch.",)
    return (f"{model.module}.py and amptune_runtime.py belong beside this file.", _NO_PRECISION)


def _lost(plan: Plan) -> list[Lost]:
    if not plan.scaler.enabled:
        return []
    return [
        Lost(
            "Lightning takes one precision plugin, and its FSDP plugin no scaler of one's own",
            "With the FSDP or DeepSpeed strategy use the fsdp2 or deepspeed target.",
        )
    ]
