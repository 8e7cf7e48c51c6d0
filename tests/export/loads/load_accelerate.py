"""Accelerate, told by its environment to use bf16: the script keeps the plan in force all the same."""

import os

import loading
import torch
from accelerate.state import AcceleratorState
from accelerate.utils.modeling import get_mixed_precision_context_manager

os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"

for case in loading.cases():
    AcceleratorState._reset_state(reset_partial_state=True)
    train = case.module("train_accelerate")
    accelerator = train.make_accelerator(cpu=True)
    if case.plan.scaler.enabled:
        assert accelerator.scaler_handler.init_scale == case.plan.scaler.init_scale
        assert accelerator.scaler_handler.growth_interval == case.plan.scaler.growth_interval
        # What prepare() wraps the forward in on a GPU: entered, it must leave autocast off.
        with get_mixed_precision_context_manager(native_amp=True, autocast_kwargs=accelerator.autocast_handler):
            assert not torch.is_autocast_enabled("cpu")
    model = train.make_model()
    model, optimizer = accelerator.prepare(model, train.make_optimizer(model.parameters()))

    def step(train=train, accelerator=accelerator, model=model, optimizer=optimizer):
        train.train(accelerator, model, optimizer, train.batches(), steps=1)

    loading.check(model, step, case.plan)
