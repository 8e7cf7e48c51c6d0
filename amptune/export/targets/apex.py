"""apex is deprecated and knows opt levels, not layers: what an O1 or O2 script becomes in native AMP."""

from __future__ import annotations

from amptune.core.plan import Plan
from amptune.export.code import python_file
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.targets.pytorch import training_file

_MAPPING = """\
# apex                                                    here
# amp.initialize(model, optimizer, opt_level="O1")        the patched model: casts by layer instead of by function
# amp.initialize(model, optimizer, opt_level="O2")        the same: parameters are FP32, so they are the master weights
# loss_scale="dynamic" or a number                        {scaler}
# with amp.scale_loss(loss, optimizer) as s: s.backward() {backward}
# clip_grad_norm_(amp.master_params(optimizer), n)        {clip}
# amp.state_dict()                                        {state}
# keep_batchnorm_fp32=True                                BatchNorm keeps FP32 weights whatever its format
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """The pytorch target's loop, with apex's calls beside what stands for each."""
    scaled = plan.scaler.enabled
    mapping = _MAPPING.format(
        scaler="torch.amp.GradScaler with the tuned numbers" if scaled else "none: no site is FP16",
        backward="scaler.scale(loss).backward()" if scaled else "loss.backward()",
        clip="scaler.unscale_(optimizer), then clip model.parameters()" if scaled else "clip model.parameters()",
        state="scaler.state_dict()" if scaled else "nothing to save",
    )
    lost = [
        Lost(
            "apex cannot hold this plan: an opt level is one choice for the whole model, and apex.amp is unmaintained",
            "This is the same training in native AMP; `amptune lint` finds what is left of apex (AMP403).",
        )
    ]
    notes = (f"{model.module}.py and amptune_runtime.py belong beside this file.",)
    code = f"{mapping}\n{training_file(plan, model)}"
    return python_file(f"From apex to native AMP, for {model.original}", plan, model, code, lost=lost, notes=notes)
