"""The scaler rules on spellings and structures that training code is really written in."""

from __future__ import annotations

from textwrap import dedent

import pytest

from amptune.lint.check import check_text
from amptune.testing import read_marks, source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"]) if rule.code.startswith("AMP1")]

CASES = {
    "102: clip under another name": """
        import torch
        from torch.nn.utils import clip_grad_norm_ as limit
        def train(model, loader, optimizer):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                scaler.scale(model(x)).backward()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                limit(model.parameters(), 1.0)  # <- AMP102
                scaler.update()
        """,
    "109: conversion and scaler under conditions that exclude each other": """
        import torch
        class Engine:
            def __init__(self, module, dtype):
                self.module = module
                self.optimizer = torch.optim.SGD(self.module.parameters(), 0.1)
                if dtype == torch.float16:
                    self.scaler = torch.amp.GradScaler("cuda")
            def convert(self):
                if self.config.bf16:
                    self.module.bfloat16()
        """,
    "109: conversion under a condition, scaler always": """
        import torch
        def main(model, bf16):
            if bf16:
                model.bfloat16()
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scaler = torch.amp.GradScaler("cuda")  # <- AMP109
            return optimizer, scaler
        """,
    "103: one update serves a loop over the optimizers": """
        import torch
        def train(models, optimizers, loader):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                for model, optimizer in zip(models, optimizers):
                    optimizer.zero_grad()
                    scaler.scale(model(x)).backward()
                    scaler.step(optimizer)
                scaler.update()
        """,
    "103: a loop over the optimizers and no update": """
        import torch
        def train(models, optimizers, loader):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                for model, optimizer in zip(models, optimizers):
                    optimizer.zero_grad()
                    scaler.scale(model(x)).backward()
                    scaler.step(optimizer)  # <- AMP103
        """,
    "101: optimizers of a list, some of them skipped": """
        import torch
        def train(model, loader, optimizers, turn):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                loss, wanted = model(x)
                scaler.scale(loss).backward()
                for i, optimizer in enumerate(optimizers):
                    if wanted is not None and i != wanted:
                        continue
                    scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for i, optimizer in enumerate(optimizers):
                    if wanted is not None and i != wanted:
                        continue
                    scaler.step(optimizer)
                scaler.update()
                for optimizer in optimizers:
                    optimizer.zero_grad()
        """,
    "101: optimizers of a list, unscaled after the clip": """
        import torch
        def train(model, loader, optimizers):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                scaler.scale(model(x)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- AMP101
                for optimizer in optimizers:
                    scaler.unscale_(optimizer)
                    scaler.step(optimizer)
                    optimizer.zero_grad()
                scaler.update()
        """,
    # --- defects -----------------------------------------------------------------------------------------------
    "102: clip after update, functions from a star import": """
        from torch.cuda.amp import *
        from torch import nn
        def train(net, opt, data):
            scaler = GradScaler()
            for x in data:
                opt.zero_grad()
                scaler.scale(net(x)).backward()
                scaler.unscale_(opt)
                scaler.step(opt)
                scaler.update()
                nn.utils.clip_grad_norm_(net.parameters(), max_norm=0.1)  # <- AMP102
        """,
    "104: unscale in a clip helper that runs every batch": """
        import torch
        class T:
            def __init__(self):
                self.grad_scaler = torch.cuda.amp.GradScaler()
            def _clip(self):
                self.grad_scaler.unscale_(self.optim)  # <- AMP104
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
            def run(self, data):
                for n, x in enumerate(data, 1):
                    loss = self.net(x) / self.every
                    self.grad_scaler.scale(loss).backward()
                    self._clip()
                    if n % self.every == 0 or n == len(data):
                        self.grad_scaler.step(self.optim)
                        self.grad_scaler.update()
                        self.optim.zero_grad()
        """,
    "104: gate that continues early": """
        import torch
        def train(model, loader, optimizer, k):
            scaler = torch.amp.GradScaler("cuda")
            for i, x in enumerate(loader):
                scaler.scale(model(x) / k).backward()
                scaler.unscale_(optimizer)  # <- AMP104
                if (i + 1) % k != 0:
                    continue
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        """,
    "105: three optimizers, module level": """
        import torch
        scaler = torch.amp.GradScaler("cuda")
        for x in loader:
            optim_a.zero_grad(); optim_b.zero_grad(); optim_c.zero_grad()
            with torch.autocast("cuda"):
                loss = model(x)
            scaler.scale(loss).backward()
            scaler.step(optim_a)
            scaler.update()  # <- AMP105
            scaler.step(optim_b)
            scaler.update()  # <- AMP105
            scaler.step(optim_c)
            scaler.update()
        """,
    "105: in helper methods for both halves of a GAN": """
        import torch
        class Gan:
            def __init__(self):
                self.scaler = torch.amp.GradScaler("cuda")
            def train_d(self, x):
                self.opt_d.zero_grad()
                self.scaler.scale(self.loss_d(x)).backward()
                self.scaler.step(self.opt_d)
                self.scaler.update()  # <- AMP105
            def train_g(self, x):
                self.opt_g.zero_grad()
                self.scaler.scale(self.loss_g(x)).backward()
                self.scaler.step(self.opt_g)
                self.scaler.update()
            def fit(self, data):
                for x in data:
                    self.train_d(x)
                    self.train_g(x)
        """,
    "106: autograd.backward on a plain loss": """
        import torch
        def train(model, loader, optimizer):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                with torch.autocast("cuda"):
                    loss = model(x).mean()
                torch.autograd.backward(loss)  # <- AMP106
                scaler.step(optimizer)
                scaler.update()
        """,
    "106: only inside `if use_amp`": """
        import torch
        def train(model, loader, optimizer, use_amp):
            scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
            for x in loader:
                optimizer.zero_grad()
                with torch.autocast("cuda", enabled=use_amp):
                    out = model(x)
                    loss = out.mean()
                if use_amp:
                    loss.backward()  # <- AMP106
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    loss.backward()
                    optimizer.step()
        """,
    "107: step of a second optimizer forgotten": """
        import torch
        def train(model, loader):
            opt1 = torch.optim.Adam(model.enc.parameters())
            opt2 = torch.optim.Adam(model.dec.parameters())
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                opt1.zero_grad()
                opt2.zero_grad()
                scaler.scale(model(x)).backward()
                scaler.step(opt1)
                opt2.step()  # <- AMP107
                scaler.update()
        """,
    "107: gated accumulation": """
        import torch
        def train(model, loader, optimizer, n, amp):
            scaler = torch.amp.GradScaler("cuda", enabled=amp)
            for i, x in enumerate(loader):
                with torch.autocast("cuda", enabled=amp):
                    loss = model(x) / n
                scaler.scale(loss).backward()
                if (i + 1) % n == 0:
                    optimizer.step()  # <- AMP107
                    scaler.update()
                    optimizer.zero_grad()
        """,
    "108: scheduler built elsewhere, before the step": """
        import torch
        from .utils import build_scheduler
        def train(model, loader, optimizer, cfg):
            lr_scheduler = build_scheduler(optimizer, cfg)
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                scaler.scale(model(x)).backward()
                lr_scheduler.step()  # <- AMP108
                scaler.step(optimizer)
                scaler.update()
        """,
    "110: model loaded by a helper of the file": """
        import torch
        def load():
            net = Net()
            return net.cuda().half()  # <- AMP110
        def main(loader):
            model = load()
            optimizer = torch.optim.AdamW(params=model.parameters(), lr=1e-3)
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                scaler.scale(model(x)).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        """,
    "110: wrapped in DataParallel afterwards": """
        import torch
        from torch import nn, optim
        model = nn.DataParallel(Net().to(torch.half))  # <- AMP110
        optimizer = optim.Adam(model.parameters())
        scaler = torch.cuda.amp.GradScaler()
        """,
    "111: while loop": """
        import torch
        def fit(model, loader, optimizer, patience):
            epoch = 0
            while epoch < patience:
                grad_scaler = torch.cuda.amp.GradScaler(init_scale=2.0**12)  # <- AMP111
                for x in loader:
                    optimizer.zero_grad()
                    grad_scaler.scale(model(x)).backward()
                    grad_scaler.step(optimizer)
                    grad_scaler.update()
                epoch += 1
        """,
    "115: gradient norm, return from a step": """
        import torch
        def step(model, optimizer, scaler, x):
            loss = model(x)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if norm.isnan() or norm.isinf():
                optimizer.zero_grad()
                return 0.0  # <- AMP115
            scaler.step(optimizer)
            scaler.update()
            return loss.item()
        """,
    "116: model.zero_grad before the step": """
        import torch
        def train(model, loader):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                scaler.scale(model(x)).backward()
                model.zero_grad()  # <- AMP116
                scaler.step(optimizer)
                scaler.update()
        """,
    "117: norm logged every n batches": """
        import torch
        def train(model, loader, optimizer, writer):
            scaler = torch.amp.GradScaler("cuda")
            for i, x in enumerate(loader):
                optimizer.zero_grad()
                scaler.scale(model(x)).backward()
                if i % 100 == 0:
                    for name, p in model.named_parameters():
                        writer.add_histogram(name, p.grad, i)  # <- AMP117
                scaler.step(optimizer)
                scaler.update()
        """,
    "117: noise added in place": """
        import torch
        def train(model, loader, optimizer):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                scaler.scale(model(x)).backward()
                for p in model.parameters():
                    p.grad += torch.randn_like(p) * 0.01  # <- AMP117
                scaler.step(optimizer)
                scaler.update()
        """,
    "118: old spelling, forward and loss in the region": """
        import torch
        from torch.cuda.amp import autocast
        def train(model, loader, optimizer, criterion):
            for x, y in loader:
                optimizer.zero_grad()
                with autocast():  # <- AMP118
                    out = model(x)
                    loss = criterion(out, y)
                loss.backward()
                optimizer.step()
        """,
    "119: returned beside the backward": """
        import torch
        def step(model, x, optimizer, scaler):
            loss = scaler.scale(model(x))
            loss.backward()
            scaler.step(optimizer)
            scaler.update()
            return loss.item()  # <- AMP119
        """,
    "121: settings of one object": """
        import torch
        class T:
            def __init__(self, cfg):
                self.cfg = cfg
                self.scaler = torch.amp.GradScaler("cuda", enabled=cfg.train.loss_scaling)  # <- AMP121
                self.ctx = torch.autocast("cuda", enabled=cfg.train.amp)
        """,
    "118: the scaler is made and never used": """
        import torch
        from torch.amp import GradScaler, autocast
        scaler = GradScaler("cuda")
        for x, y in loader:
            with autocast("cuda"):  # <- AMP118
                loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        """,
    "106: the scaled loss is thrown away": """
        import torch
        def train(model, loader, optimizer):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                loss = model(x)
                scaler.scale(loss)
                loss.backward()  # <- AMP106
                scaler.step(optimizer)
                scaler.update()
        """,
    "107: both branches share a plain step": """
        import torch
        def train(model, loader, optimizer, fp16):
            scaler = torch.amp.GradScaler("cuda", enabled=fp16)
            for x in loader:
                optimizer.zero_grad()
                loss = model(x)
                if fp16:
                    scaler.scale(loss).backward()
                else:
                    loss.backward()
                optimizer.step()  # <- AMP107
                scaler.update()
        """,
    # --- near misses -------------------------------------------------------------------------------------------
    "valid: NativeScaler of timm": """
        import torch
        class NativeScaler:
            state_dict_key = "amp_scaler"
            def __init__(self):
                self._scaler = torch.cuda.amp.GradScaler()
            def __call__(self, loss, optimizer, clip_grad=None, parameters=None, create_graph=False, need_update=True):
                self._scaler.scale(loss).backward(create_graph=create_graph)
                if need_update:
                    if clip_grad is not None:
                        self._scaler.unscale_(optimizer)
                        torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
                    self._scaler.step(optimizer)
                    self._scaler.update()
            def state_dict(self):
                return self._scaler.state_dict()
        """,
    "valid: MAE loss scaler": """
        import torch
        class Scaler:
            def __init__(self):
                self._scaler = torch.amp.GradScaler("cuda")
            def __call__(self, loss, optimizer, clip_grad=None, parameters=None, update_grad=True):
                self._scaler.scale(loss).backward()
                if update_grad:
                    if clip_grad is not None:
                        self._scaler.unscale_(optimizer)
                        norm = torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
                    else:
                        self._scaler.unscale_(optimizer)
                        norm = torch.norm(torch.stack([torch.norm(p.grad.detach(), 2) for p in parameters]), 2)
                    self._scaler.step(optimizer)
                    self._scaler.update()
                else:
                    norm = None
                return norm
        """,
    "valid: nanoGPT": """
        import torch
        ctx = torch.amp.autocast(device_type=device_type, dtype=ptdtype)
        scaler = torch.cuda.amp.GradScaler(enabled=(dtype == "float16"))
        X, Y = get_batch("train")
        while True:
            for micro_step in range(gradient_accumulation_steps):
                with ctx:
                    logits, loss = model(X, Y)
                    loss = loss / gradient_accumulation_steps
                X, Y = get_batch("train")
                scaler.scale(loss).backward()
            if grad_clip != 0.0:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            lossf = loss.item() * gradient_accumulation_steps
        """,
    "valid: torchvision reference": """
        import torch
        def train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema=None, scaler=None):
            for i, (image, target) in enumerate(data_loader):
                with torch.cuda.amp.autocast(enabled=scaler is not None):
                    output = model(image)
                    loss = criterion(output, target)
                optimizer.zero_grad()
                if scaler is not None:
                    scaler.scale(loss).backward()
                    if args.clip_grad_norm is not None:
                        scaler.unscale_(optimizer)
                        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    loss.backward()
                    if args.clip_grad_norm is not None:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad_norm)
                    optimizer.step()
        def main(args, model, optimizer, lr_scheduler, loader):
            scaler = torch.cuda.amp.GradScaler() if args.amp else None
            for epoch in range(args.epochs):
                train_one_epoch(model, None, optimizer, loader, None, epoch, args, None, scaler)
                lr_scheduler.step()
                checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                if scaler:
                    checkpoint["scaler"] = scaler.state_dict()
        """,
    "valid: YOLO, warm-up and last optimizer step": """
        import torch
        from torch.cuda import amp
        def train(model, loader, optimizer, scheduler, accumulate, epochs, cuda):
            scaler = amp.GradScaler(enabled=cuda)
            last = -1
            for epoch in range(epochs):
                optimizer.zero_grad()
                for i, (imgs, targets) in enumerate(loader):
                    ni = i + len(loader) * epoch
                    with amp.autocast(enabled=cuda):
                        loss, items = compute_loss(model(imgs), targets)
                    scaler.scale(loss).backward()
                    if ni - last >= accumulate:
                        scaler.unscale_(optimizer)
                        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
                        last = ni
                scheduler.step()
        """,
    "valid: GAN with one update at the end": """
        import torch
        def train(G, D, loader, optG, optD, scaler):
            for real in loader:
                optD.zero_grad()
                with torch.autocast("cuda"):
                    d_loss = D(real).mean() - D(G(real).detach()).mean()
                scaler.scale(d_loss).backward()
                scaler.step(optD)
                optG.zero_grad()
                with torch.autocast("cuda"):
                    g_loss = -D(G(real)).mean()
                scaler.scale(g_loss).backward()
                scaler.step(optG)
                scaler.update()
        """,
    "valid: skipping by hand with an update": """
        import torch
        def train(model, loader, optimizer):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                loss = model(x)
                if not torch.isfinite(loss):
                    print("skip")
                    optimizer.zero_grad()
                    continue
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                if torch.isnan(norm):
                    continue
                print(norm)
        """,
    "valid: two names for one switch": """
        import torch
        def train(model, loader, optimizer, device, use_cuda):
            scaler = torch.amp.GradScaler("cuda")
            for x in loader:
                optimizer.zero_grad()
                loss = model(x)
                if use_cuda:
                    scaler.scale(loss).backward()
                else:
                    loss.backward()
                if device.type == "cuda":
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
        """,
    "valid: apex": """
        from apex import amp
        def train(model, loader, optimizer):
            model, optimizer = amp.initialize(model, optimizer, opt_level="O1")
            for x in loader:
                optimizer.zero_grad()
                loss = model(x)
                with amp.scale_loss(loss, optimizer) as scaled_loss:
                    scaled_loss.backward()
                optimizer.step()
        """,
    "valid: data scaler of scikit-learn": """
        from sklearn.preprocessing import StandardScaler
        import torch
        scaler = StandardScaler()
        def train(model, loader, optimizer):
            for x in loader:
                optimizer.zero_grad()
                loss = model(scaler.transform(x))
                loss.backward()
                optimizer.step()
                scaler.update(x)
        """,
    "valid: Lightning, manual optimization": """
        import torch
        import lightning as L
        class M(L.LightningModule):
            def training_step(self, batch, i):
                opt_g, opt_d = self.optimizers()
                loss = self.net(batch)
                self.manual_backward(loss)
                self.clip_gradients(opt_g, gradient_clip_val=1.0)
                opt_g.step()
                opt_g.zero_grad()
        """,
    "valid: accelerate with its own accumulation": """
        import torch
        from accelerate import Accelerator
        def main(model, optimizer, loader, scheduler):
            accelerator = Accelerator(mixed_precision="fp16", gradient_accumulation_steps=4)
            for batch in loader:
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        loss = model(batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
        """,
    "valid: two scalers in a dict": """
        import torch
        scalers = {"g": torch.amp.GradScaler("cuda"), "d": torch.amp.GradScaler("cuda")}
        def step(opt_g, opt_d, loss_g, loss_d):
            opt_d.zero_grad()
            scalers["d"].scale(loss_d).backward()
            scalers["d"].step(opt_d)
            scalers["d"].update()
            opt_g.zero_grad()
            scalers["g"].scale(loss_g).backward()
            scalers["g"].step(opt_g)
            scalers["g"].update()
        """,
    "valid: scheduler once an epoch at its start, and by the gate": """
        import torch
        def train(model, loader, optimizer, scheduler, scaler, n):
            for epoch in range(9):
                scheduler.step()
                for i, x in enumerate(loader):
                    scaler.scale(model(x) / n).backward()
                    if i % n == n - 1:
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
        """,
}


@pytest.mark.parametrize("name", CASES)
def test_marked_lines(name: str) -> None:
    text, marks = read_marks(dedent(CASES[name]).lstrip("\n"))
    found = check_text("example.py", text, RULES)
    assert [(f.location.line, f.rule) for f in found] == [(mark.line, mark.code) for mark in marks], "\n".join(
        f"{f.location} {f.rule} {f.message}" for f in found
    )
