"""Corner cases of AMP101, AMP103, AMP109 and AMP201."""

from __future__ import annotations

import textwrap

import pytest

from amptune.lint.check import check_text
from amptune.testing import read_marks, source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"]) if rule.code in ("AMP101", "AMP103", "AMP109", "AMP201")]
CASES = {
    "101: lambda clip in a conditional expression": """
        import torch
        def step(scaler, loss, optimizer, model, clip):
            scaler.scale(loss).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip) if clip else None  # <- AMP101
            scaler.step(optimizer)
            scaler.update()
            return norm
    """,
    "101: the unscale is in an unrelated branch": """
        import torch
        def step(scaler, loss, optimizer, model, clip, log_norm):
            scaler.scale(loss).backward()
            if log_norm:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)  # <- AMP101
            scaler.step(optimizer)
            scaler.update()
    """,
    "101: unscaled inside the loop over optimizers": """
        import torch
        def step(scaler, loss, optimizers, model):
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
    """,
    "101: generator and discriminator": """
        import torch
        def step(scaler, loss_d, loss_g, opt_d, opt_g, net_d, net_g):
            scaler.scale(loss_d).backward()
            scaler.unscale_(opt_d)
            torch.nn.utils.clip_grad_norm_(net_d.parameters(), 1.0)
            scaler.step(opt_d)
            scaler.scale(loss_g).backward()
            scaler.step(opt_g)
            scaler.update()
    """,
    "101: clip at the end of the accumulation, unscale forgotten": """
        import torch
        class Trainer:
            def __init__(self, n):
                self.scaler = torch.amp.GradScaler("cuda")
                self.n = n
            def train(self, loader):
                for i, batch in enumerate(loader):
                    with torch.autocast("cuda"):
                        loss = self.model(batch) / self.n
                    self.scaler.scale(loss).backward()
                    if (i + 1) % self.n:
                        continue
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # <- AMP101
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                    self.optimizer.zero_grad()
    """,
    "101: deepspeed-like engine and no scaler": """
        def train(engine, batches):
            for batch in batches:
                engine.backward(engine(batch))
                engine.clip_grad_norm_(1.0)
                engine.step()
    """,
    "103: several optimizers in a loop": """
        import torch
        def train(loader, model, optimizers):
            scaler = torch.amp.GradScaler("cuda")
            for batch in loader:
                scaler.scale(model(batch)).backward()
                for optimizer in optimizers:
                    scaler.step(optimizer)
                scaler.update()
    """,
    "103: update after the inner loop is too late": """
        import torch
        def train(epochs, loader, model, optimizer):
            scaler = torch.amp.GradScaler("cuda")
            for epoch in range(epochs):
                for batch in loader:
                    scaler.scale(model(batch)).backward()
                    scaler.step(optimizer)  # <- AMP103
                    optimizer.zero_grad()
                scaler.update()
    """,
    "103: one class, steps without any update": """
        import torch
        class Plugin:
            def backward(self, loss):
                self.scaler.scale(loss).backward()
            def step(self, optimizer):
                self.scaler.step(optimizer)  # <- AMP103
    """,
    "103: a wrapper that only steps": """
        class Wrapper:
            def step(self, optimizer):
                self.scaler.step(optimizer)
    """,
    "103: update in a helper": """
        import torch
        def finish(scaler, optimizer):
            scaler.step(optimizer)
            optimizer.zero_grad()
            scaler.update()
        def train(loader, model, optimizer, scaler):
            for batch in loader:
                scaler.scale(model(batch)).backward()
                finish(scaler, optimizer)
    """,
    "109: the scaler of another precision": """
        import torch
        def run(model, x, fp16):
            if fp16:
                scaler = torch.amp.GradScaler("cuda")
                context = torch.autocast("cuda", dtype=torch.float16)
            else:
                scaler = None
                context = torch.autocast("cuda", dtype=torch.bfloat16)
            with context:
                return model(x), scaler
    """,
    "109: dictionary of dtypes and a flag": """
        import torch
        DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
        def run(model, x, name):
            dtype = DTYPES[name]
            scaler = torch.amp.GradScaler("cuda", enabled=name == "fp16")
            with torch.autocast("cuda", dtype=dtype):
                return model(x), scaler
    """,
    "109: partial, bfloat16 on the CPU by default": """
        import functools
        import torch
        context = functools.partial(torch.autocast, "cpu")
        def run(model, x):
            scaler = torch.amp.GradScaler("cpu")  # <- AMP109
            with context():
                return model(x), scaler
    """,
    "109: another model's parameters are bfloat16": """
        import torch
        def run(student, teacher, x):
            teacher = teacher.to(torch.bfloat16)
            optimizer = torch.optim.SGD(student.parameters(), 0.1)
            scaler = torch.amp.GradScaler("cuda")
            return scaler, optimizer, teacher
    """,
    "201: the context comes from a method": """
        import torch
        class Trainer:
            def context(self):
                return torch.autocast("cuda", dtype=torch.bfloat16)
            def step(self, x):
                with self.context():
                    loss = self.model(x)
                    loss.backward()  # <- AMP201
    """,
    "201: a function that is only defined inside": """
        import torch
        def run(model, x):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                def later(loss):
                    loss.backward()
                y = model(x)
            later(y)
    """,
    "201: compiled by a call": """
        import torch
        def step(model, x):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                model(x).backward()  # <- AMP201
        fast = torch.compile(step)
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_marked_lines(name: str) -> None:
    text, marks = read_marks(textwrap.dedent(CASES[name]).lstrip("\n"))
    found = check_text("example.py", text, RULES)
    wanted = [(mark.line, mark.code) for mark in marks]
    assert [(item.location.line, item.rule) for item in found] == wanted, [item.message for item in found]


def severity_of(code: str) -> str:
    (finding,) = check_text("a.py", textwrap.dedent(code), RULES)
    return str(finding.severity)


def test_severities() -> None:
    bf16 = 'import torch\nscaler = torch.amp.GradScaler("cuda")\nmodel.{}\nmodel.parameters()\n'
    assert severity_of(bf16.format("bfloat16()")) == "error"
    both = "dtype = torch.bfloat16 if new else torch.float16\nx = torch.autocast('cuda', dtype=dtype)\n"
    assert severity_of('import torch\nscaler = torch.amp.GradScaler("cuda")\n' + both) == "info"
    eager = "import torch\ndef f(x):\n    with torch.autocast('cuda'):\n        g(x).backward()\n"
    assert severity_of(eager) == "warning"
    assert severity_of(eager.replace("def", "@torch.compile(fullgraph=False)\ndef")) == "error"
