"""A training loop in plain PyTorch: the patched model, and the GradScaler where the plan has FP16."""

from __future__ import annotations

from amptune.core.plan import Plan
from amptune.export.code import (
    TO_DEVICE,
    batches_of,
    data_of,
    feed_import,
    feeding,
    loss_of,
    optimizer_of,
    python_file,
    scaler_arguments,
    standard_imports,
)
from amptune.export.export import Export
from amptune.export.model import ModelFile

_FILE = """\
{standard_imports}import torch

{imports}

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEED = 0
STEPS = 200
ACCUMULATE = 1  # batches for each optimizer step
MAX_NORM = 1.0  # gradients are clipped to this norm


{feed}{to_device}

{batches}

def train(model, optimizer, {scaler_parameter}data, steps=STEPS, accumulate=ACCUMULATE):
    \"\"\"``steps`` optimizer steps on batches of ``data``; returns the loss of each.\"\"\"
    losses = []
    model.train()
    optimizer.zero_grad(set_to_none=True)
    for _ in range(steps):
        total = 0.0
        for _ in range(accumulate):
            batch = to_device(next(data), DEVICE)
            output = {output}  # no torch.autocast here: the plan is in the model
            loss = {loss} / accumulate
            {backward}
            total += loss.detach()
{step}\
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return [float(loss) for loss in losses]


def save(path, model, optimizer{scaler_last}):
    \"\"\"Parameters are FP32 under their own names, so the checkpoint loads without the plan too.\"\"\"
    state = {{"model": model.state_dict(), "optimizer": optimizer.state_dict(){scaler_state}}}
    torch.save(state, path)


def load(path, model, optimizer{scaler_last}):
    \"\"\"The opposite of ``save``.\"\"\"
    state = torch.load(path, map_location=DEVICE, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
{scaler_load}

def main():
    torch.manual_seed(SEED)
    set_backend_flags()  # process-wide TF32 flags, as they were measured
    model = {builder}().to(DEVICE)
    # torch.compile(model), DistributedDataParallel and fully_shard come here, after the plan is in the model.
    optimizer = {optimizer}
{make_scaler}\
    losses = train(model, optimizer, {scaler_argument}batches())
    print(f"loss {{losses[0]:.4f}} -> {{losses[-1]:.4f}}")
{evaluate}\


if __name__ == "__main__":
    main()
"""

_PLAIN_STEP = """\
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
"""
_SCALED_STEP = """\
        # Once for each step, after its last batch: one scale holds for all of them.
        scaler.unscale_(optimizer)  # before clipping, which would else compare scaled gradients with MAX_NORM
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(optimizer)  # leaves the step out where a gradient is not finite
        scaler.update()
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """A loop with accumulation, clipping and checkpoints. Nothing of a plan is lost in it."""
    return python_file(
        f"A training loop for {model.original}", plan, model, training_file(plan, model), lost=[],
        notes=(f"{model.module}.py and amptune_runtime.py belong beside this file.",),
    )  # fmt: skip


def training_file(plan: Plan, model: ModelFile) -> str:
    """The code of the file."""
    scaled = plan.scaler.enabled
    feed, output = feeding(model)
    arguments = scaler_arguments(plan.scaler).replace(", ", ",\n        ")
    return _FILE.format(
        imports=model.imports("loss_fn", "make_optimizer", data_of(model), "run", "evaluate", "set_backend_flags"),
        standard_imports=standard_imports(feed_import(model)),
        feed=feed,
        to_device=TO_DEVICE,
        batches=batches_of(model),
        output=output,
        loss=loss_of(model),
        backward="scaler.scale(loss).backward()" if scaled else "loss.backward()",
        step=_SCALED_STEP if scaled else _PLAIN_STEP,
        builder=model.builder,
        optimizer=optimizer_of(model),
        make_scaler=f"    scaler = torch.amp.GradScaler(\n        DEVICE.type,\n        {arguments},\n    )\n"
        if scaled
        else "",
        scaler_parameter="scaler, " if scaled else "",
        scaler_argument="scaler, " if scaled else "",
        scaler_last=", scaler" if scaled else "",
        scaler_state=', "scaler": scaler.state_dict()' if scaled else "",
        scaler_load='    scaler.load_state_dict(state["scaler"])\n' if scaled else "",
        evaluate='    print(f"evaluate: {evaluate(model):.3f}")\n' if model.has("evaluate") else "",
    )
