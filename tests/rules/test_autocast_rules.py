"""Corner cases of the rules on autocast and autograd functions (AMP202 to AMP216)."""

from __future__ import annotations

import textwrap

import pytest

from amptune.core.finding import Finding, Severity
from amptune.core.rule import SourceRule
from amptune.lint.check import check_text
from amptune.testing import source_rules

RULES = {rule.code: rule for rule in source_rules(["amptune_rules"])}
HEADER = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n"


def lint(code: str, text: str) -> list[Finding]:
    rule: SourceRule = RULES[code]()
    return check_text("a.py", HEADER + textwrap.dedent(text), [rule])


def lines(code: str, text: str) -> list[int]:
    return [finding.location.line - HEADER.count("\n") for finding in lint(code, text)]


FLAGGED = {
    "AMP202 output reshaped between": """\
        def step(net, x, y, crit):
            logits = net(x)
            logits = logits.squeeze(1)
            with torch.autocast("cuda"):
                loss = crit(logits, y)
            return loss
        """,
    "AMP202 backward in the region": """\
        def step(model, x, y, criterion):
            out = model.forward(x)
            with torch.autocast("cuda"):
                loss = criterion(out, y)
                loss.backward()
        """,
    "AMP202 fields of the output": """\
        def step(model, batch):
            outputs = model(**batch)
            with torch.autocast("cuda"):
                loss = F.cross_entropy(outputs.logits, batch["labels"])
                loss = loss / 4
            loss.backward()
        """,
    "AMP203 object moved to the GPU": """\
        criterion = nn.BCELoss().to("cuda")
        def step(net, x, y):
            with torch.autocast("cuda"):
                return criterion(net(x), y)
        """,
    "AMP203 one of two losses": """\
        def step(net, x, y, binary):
            loss_fn = nn.BCELoss() if binary else nn.CrossEntropyLoss()
            with torch.autocast("cuda"):
                return loss_fn(net(x), y)
        """,
    "AMP203 method of an object of the file": """\
        class Vae(nn.Module):
            def loss_of(self, r, x):
                return F.binary_cross_entropy(r, x)
        def train(loader):
            model = Vae()
            for x in loader:
                with torch.autocast("cuda"):
                    model.loss_of(model(x), x)
        """,
    "AMP204 extension from the package": """\
        from . import _C
        class Deform(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value, where):
                ctx.save_for_backward(value, where)
                return _C.deform_forward(value, where)
            @staticmethod
            def backward(ctx, grad):
                return _C.deform_backward(grad, *ctx.saved_tensors)
        """,
    "AMP204 operator library": """\
        class Dot(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a, b):
                ctx.save_for_backward(a, b)
                return torch.ops.mylib.dot(a, b)
            @staticmethod
            def backward(ctx, grad):
                return torch.ops.mylib.dot_backward(grad, *ctx.saved_tensors)
        """,
    "AMP205 nested class, partial of the old name": """\
        import functools
        fwd = functools.partial(torch.cuda.amp.custom_fwd, cast_inputs=None)
        def make():
            class Scale(torch.autograd.Function):
                @staticmethod
                @fwd
                def forward(ctx, x):
                    return x * 2
                @staticmethod
                def backward(ctx, grad):
                    return grad * 2
            return Scale
        """,
    "AMP206 undecorated base of the file": """\
        class Base(nn.Module):
            pass
        class Norm(Base):
            @torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)
            def forward(self, x):
                return x
        """,
    "AMP207 dtype alone": """\
        from torch import autocast as ac
        with ac(dtype=torch.bfloat16):
            pass
        """,
    "AMP208 annotated device": """\
        def step(model, x, device: torch.device):
            with torch.autocast(device_type=device):
                return model(x)
        """,
    "AMP208 device made in the constructor": """\
        class Runner:
            def __init__(self):
                self.device = torch.device("cuda")
            def run(self, model, x):
                with torch.amp.autocast(self.device, dtype=torch.float16):
                    return model(x)
        """,
    "AMP208 switch with a default": """\
        def step(model, x, use_amp=True):
            with torch.autocast("cuda", use_amp, torch.float16):
                return model(x)
        """,
    "AMP208 switch by its name": """\
        def step(model, x, args):
            with torch.autocast("cuda", args.use_amp):
                return model(x)
        """,
    "AMP209 two at once": """\
        def step(model, a, b):
            with torch.autocast("cuda"):
                a, b = a.half(), b
                return model(a, b)
        """,
    "AMP209 layer on self": """\
        class Net(nn.Module):
            def forward(self, x):
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    x = x.to(dtype=torch.bfloat16)
                    return self.stem(x)
        """,
    "AMP209 switched by a flag": """\
        def step(model, x, amp):
            with torch.autocast("cuda", enabled=amp):
                return model(x.half())
        """,
    "AMP210 scaled in between": """\
        def attend(q, k, v):
            with torch.autocast("cuda"):
                scores = torch.bmm(q, k)
                scores = scores * 0.125
                with torch.autocast("cuda", enabled=False):
                    scores = F.softmax(scores, dim=-1)
                return scores @ v
        """,
    "AMP210 keyword argument": """\
        def step(model, x, y):
            with torch.autocast("cuda"):
                out = model(x)
            with torch.autocast("cuda", enabled=False):
                return F.cross_entropy(input=out, target=y)
        """,
    "AMP211 function with an underscore": """\
        def run(x, w):
            with torch.autocast("cuda"):
                h = x @ w
                torch.exp_(h)
        """,
    "AMP211 in a statement of its own": """\
        def run(c, a, b):
            with torch.autocast("cuda"):
                c = c.addmm_(a, b, beta=0.5)
        """,
    "AMP212 at module level": """\
        model = nn.Linear(3, 3)
        model.to("cpu")
        with torch.autocast("cuda"):
            model(torch.randn(3))
        """,
    "AMP212 device kept on self": """\
        class Runner:
            def __init__(self, model):
                self.device = torch.device("cpu")
                self.model = model.to(self.device)
            def run(self, x):
                with torch.autocast("cuda"):
                    return self.model(x)
        """,
    "AMP213 traced, then called in a loop": """\
        def run(model, batches):
            traced = torch.jit.trace(model, batches[0])
            for x in batches:
                with torch.autocast("cuda"):
                    traced(x)
        """,
    "AMP214 method compiled in the constructor": """\
        class Trainer:
            def __init__(self):
                self.fast_step = torch.compile(self.step)
            def step(self, x):
                with torch.autocast("cuda"):
                    loss = self.model(x)
                self.scaler.scale(loss).backward()
        """,
    "AMP215 decorated function": """\
        @torch.autocast("cuda")
        def step(model, x):
            with torch.no_grad():
                target = model(x)
            return model(x) - target
        """,
    "AMP215 only the last turn has gradients": """\
        def step(model, x):
            with torch.autocast("cuda"):
                for i in range(3):
                    with torch.set_grad_enabled(i == 2):
                        x = model(x)
            return x
        """,
    "AMP216 lambda": """\
        from concurrent.futures import ThreadPoolExecutor
        def run(net, xs):
            with ThreadPoolExecutor() as pool, torch.autocast("cuda"):
                return list(pool.map(lambda x: net(x), xs))
        """,
    "AMP216 subclass of Thread": """\
        import threading
        class Worker(threading.Thread):
            def run(self):
                self.model(self.x)
        def start():
            with torch.autocast("cuda"):
                Worker().start()
        """,
}

CLEAN = {
    "AMP202 framework wraps the forward": """\
        from accelerate import Accelerator
        def step(model, x, y, criterion):
            out = model(x)
            with torch.autocast("cuda"):
                loss = criterion(out, y)
        """,
    "AMP202 evaluation": """\
        @torch.no_grad()
        def evaluate(model, x, y, criterion):
            out = model(x)
            with torch.autocast("cuda"):
                return criterion(out, y)
        """,
    "AMP203 MPS": """\
        def step(net, x, y):
            with torch.autocast("mps"):
                return F.binary_cross_entropy(net(x), y)
        """,
    "AMP204 hands ctx on": """\
        import dot_cuda
        from .base import Dot
        class Wrapped(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a, b):
                dot_cuda.warm_up(a, b)
                return Dot.forward(ctx, a, b)
            @staticmethod
            def backward(ctx, grad):
                return Dot.backward(ctx, grad)
        """,
    "AMP204 no gradient": """\
        import pick_cuda
        class Pick(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a, b):
                return pick_cuda.forward(a, b)
            @staticmethod
            def backward(ctx, grad):
                return None, None
        """,
    "AMP205 hands ctx on": """\
        from .base import Dot
        class Wrapped(torch.autograd.Function):
            @staticmethod
            def forward(ctx, a, b):
                return Dot.forward(ctx, a, b)
            @staticmethod
            @torch.amp.custom_bwd(device_type="cuda")
            def backward(ctx, grad):
                return grad, grad
        """,
    "AMP207 either class": """\
        if torch.cuda.is_available():
            from torch.cuda.amp import autocast
        else:
            from torch.amp import autocast
        with autocast():
            pass
        """,
    "AMP208 dtype from settings": """\
        def step(model, x, config):
            with torch.autocast("cuda", config.amp_dtype, config.use_amp), torch.autocast("cuda", config.dtype):
                return model(x)
        """,
    "AMP208 device name from the command line": """\
        def step(model, x, device, args):
            with torch.autocast(device), torch.autocast(args.device, dtype=args.dtype):
                return model(x)
        """,
    "AMP209 label to integer, result to half": """\
        def step(model, x, y, store):
            with torch.autocast("cuda"):
                out = model(x, y.to(torch.int64))
                store.append(out.half())
                return out
        """,
    "AMP210 remade in the block": """\
        def step(model, x, y):
            with torch.autocast("cuda"):
                out = model(x)
            with torch.autocast("cuda", enabled=False):
                out = out.double()
                return F.cross_entropy(out, y)
        """,
    "AMP210 embedding is float32": """\
        class Net(nn.Module):
            def __init__(self):
                self.words = nn.Embedding(8, 8)
            def forward(self, x):
                with torch.autocast("cuda"):
                    h = self.words(x)
                    with torch.autocast("cuda", enabled=False):
                        return h.softmax(-1)
        """,
    "AMP210 network that ends in float32": """\
        net = nn.Sequential(nn.Linear(8, 8), nn.LogSoftmax(-1)).cuda()
        def step(x, y):
            with torch.autocast("cuda"):
                p = net(x)
            with torch.autocast("cuda", enabled=False):
                return F.nll_loss(p, y)
        """,
    "AMP211 buffer of float32": """\
        def run(x):
            with torch.autocast("cuda"):
                table = torch.linspace(0, 1, 8, device=x.device)
                table.pow_(2)
                return table
        """,
    "AMP212 device of the input": """\
        def run(model, x):
            model.to(x.device)
            with torch.autocast("cuda"):
                return model(x)
        """,
    "AMP212 moved twice": """\
        def run(model, x):
            model.to("cpu")
            model.to("cuda")
            with torch.autocast("cuda"):
                return model(x)
        """,
    "AMP213 decorator of something else": """\
        import numba
        @numba.jit
        def add(a, b):
            return a + b
        def run(a, b):
            with torch.autocast("cuda"):
                return add(a, b)
        """,
    "AMP214 backward in another function": """\
        @torch.compile
        def loss_of(model, x):
            with torch.autocast("cuda"):
                return model(x)
        def step(model, x):
            loss_of(model, x).backward()
        """,
    "AMP215 whole region without gradients": """\
        @torch.no_grad()
        def evaluate(model, x):
            with torch.autocast("cuda"):
                return model(x) + model(x)
        """,
    "AMP216 joins a queue": """\
        import threading
        def feed(queue, loader):
            for item in loader:
                queue.put(item)
        def run(queue, loader):
            with torch.autocast("cuda"):
                threading.Thread(target=feed, args=(queue, loader)).start()
        """,
}


@pytest.mark.parametrize("name", FLAGGED)
def test_flagged(name: str) -> None:
    assert len(lint(name[:6], FLAGGED[name])) == 1


@pytest.mark.parametrize("name", CLEAN)
def test_clean(name: str) -> None:
    assert lint(name[:6], CLEAN[name]) == []


def test_severity_follows_what_is_known() -> None:
    region = "def f(p, y, device):\n    with torch.autocast({}):\n        return F.binary_cross_entropy(p, y)\n"
    assert [lint("AMP203", region.format(device))[0].severity for device in ('"cuda"', "device")] == [
        Severity.ERROR,
        Severity.WARNING,
    ]
    off = """\
        def f(p, y, amp=False):
            with torch.autocast("cuda", enabled=amp):
                return F.binary_cross_entropy(p, y)
        """
    assert lint("AMP203", off)[0].severity is Severity.INFO
    assert lint("AMP208", FLAGGED["AMP208 switch by its name"])[0].severity is Severity.INFO


def test_line_is_that_of_the_later_call() -> None:
    assert lines("AMP215", FLAGGED["AMP215 decorated function"]) == [5]
