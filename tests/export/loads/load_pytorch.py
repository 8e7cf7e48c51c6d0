"""The loop of the pytorch target, in the plain runtime that lies beside it."""

import loading
import torch

for case in loading.cases():
    train = case.module("train")
    model = train.make_model()
    optimizer = train.make_optimizer(model.parameters())
    scaler = [torch.amp.GradScaler("cpu")] if case.plan.scaler.enabled else []

    def step(train=train, model=model, optimizer=optimizer, scaler=scaler):
        train.train(model, optimizer, *scaler, train.batches(), steps=1)

    loading.check(model, step, case.plan)
