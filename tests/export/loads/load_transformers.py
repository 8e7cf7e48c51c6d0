"""The Trainer of transformers, with ACCELERATE_MIXED_PRECISION in its environment."""

import os
import tempfile

import loading
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs

os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"


def dataset(train):
    ids = torch.arange(64).reshape(8, 8) % 16
    return [{"ids": row, "labels": row.sum() % 2} for row in ids]


for case in loading.cases():
    AcceleratorState._reset_state(reset_partial_state=True)
    train = case.module("train_trainer")
    with tempfile.TemporaryDirectory() as folder:
        args = train.training_arguments(
            folder, use_cpu=True, max_steps=1, per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
            save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = train.make_trainer(dataset(train), args)
        if case.plan.scaler.enabled:
            assert args.fp16
            assert trainer.accelerator.autocast_handler == AutocastKwargs(enabled=False)
        loading.check(trainer.model, trainer.train, case.plan)

# With a scaler, as on a GPU: it gets the tuned numbers.
if case.plan.scaler.enabled:
    import accelerate

    original = accelerate.Accelerator.__init__

    def with_scaler(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu")

    accelerate.Accelerator.__init__ = with_scaler
    AcceleratorState._reset_state(reset_partial_state=True)
    with tempfile.TemporaryDirectory() as folder:
        args = train.training_arguments(folder, use_cpu=True, report_to=[])
        scaler = train.make_trainer(dataset(train), args).accelerator.scaler
    assert scaler.state_dict() == {
        "scale": case.plan.scaler.init_scale, "growth_factor": case.plan.scaler.growth_factor,
        "backoff_factor": case.plan.scaler.backoff_factor, "growth_interval": case.plan.scaler.growth_interval,
        "_growth_tracker": 0,
    }  # fmt: skip
