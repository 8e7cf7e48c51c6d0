"""Lightning's Trainer with the exported plugin."""

import loading
import torch
from torch.utils.data import DataLoader

for case in loading.cases():
    train = case.module("train_lightning")
    trainer = train.make_trainer(
        "cpu", max_steps=1, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = train.PlannedModule()
    if case.plan.scaler.enabled and not case.name.startswith("stock"):
        # Lightning refuses to clip where an optimizer unscales inside its step.
        train.make_optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True)
    before = module.model.head.weight.detach().clone()

    def step(train=train, trainer=trainer, module=module):
        trainer.fit(module, DataLoader(train.Batches(), batch_size=None))

    loading.check(module.model, step, case.plan)
    assert not before.equal(module.model.head.weight)
    if case.plan.scaler.enabled:
        scaler = trainer.precision_plugin.scaler
        assert (scaler.get_scale(), scaler.get_growth_interval()) == (
            case.plan.scaler.init_scale, case.plan.scaler.growth_interval,
        )  # fmt: skip
