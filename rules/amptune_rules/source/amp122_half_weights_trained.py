"""AMP122: float16 weights are trained as they are, without loss scaling and without a float32 copy."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._trained import casts_back, conversions, is_in_force, trained

_OWNERS = frozenset({"deepspeed", "apex", "colossalai", "composer", "mmengine", "accelerate", "lightning", "fairseq"})


class HalfWeightsTrained(SourceRule):
    """A model whose weights were converted to float16 is trained by a plain optimizer, with no loss scaling.

    ## What it does
    Flags `.half()`, `.to(torch.float16)` and `torch_dtype=torch.float16` on a model whose parameters go to an optimizer
    of torch that the file steps, where nothing scales the loss and no float32 copy of the weights is kept.

    ## Why is this bad
    Gradients below 6e-8 become 0, and there is no scale that lifts them. A weight of 1.0 cannot take an update below
    4.9e-4 (half of its last place), so most steps of a usual learning rate are rounded away. Adam's second moment
    underflows, and its eps of 1e-8 is 0 in float16: the first step divides by zero where a gradient is 0.

    ## Example
    ```python
    import torch
    model = Net().cuda().half()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for x, y in loader:
        optimizer.zero_grad()
        loss_fn(model(x.half()).float(), y).backward()
        optimizer.step()
    ```

    ## Use instead
    ```python
    import torch
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    No fix: the conversions of the inputs have to go as well, and the forward needs a region.

    ## References
    - https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/index.html#mptrain
    """

    code = "AMP122"
    name = "half-weights-trained"
    severity = Severity.WARNING
    keywords = (b"half", b"float16")
    requires = (b".step", b"backward", b"optim")

    INVALID = (
        Example(
            "a whole script in half",
            """\
import torch
from net import Net

model = Net().cuda().half()  # <- AMP122
optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, eps=1e-4)

def train(loader, loss_fn):
    for x, y in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(x.half()).float(), y)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "only where the settings say so",
            """\
import torch

def train(net, loader, config):
    if config["half"]:
        net = net.half()  # <- AMP122
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x in loader:
        optimizer.zero_grad()
        net(x).float().mean().backward()
        optimizer.step()
""",
        ),
    )
    VALID = (
        Example(
            "bfloat16 weights",
            """\
import torch

def train(net, loader):
    net = net.bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x in loader:
        optimizer.zero_grad()
        net(x).float().mean().backward()
        optimizer.step()
""",
        ),
        Example(
            "converted for the evaluation",
            """\
import torch

def train(net, loader, test):
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x in loader:
        optimizer.zero_grad()
        net(x).mean().backward()
        optimizer.step()
    net.half()
    return test(net)
""",
        ),
        Example(
            "the loss is scaled by hand, with float32 copies of the weights",
            """\
import torch

def train(net, loader, scale=1024.0):
    net = net.half()
    master_params = [p.detach().clone().float().requires_grad_() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x in loader:
        (net(x).float().mean() * scale).backward()
        for master, p in zip(master_params, net.parameters()):
            master.grad = p.grad.float() / scale
        optimizer.step()
""",
        ),
        Example(
            "the half model is frozen, the head is trained",
            """\
import torch

def train(backbone, head, loader):
    backbone = backbone.half().eval()
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    for x in loader:
        optimizer.zero_grad()
        head(backbone(x.half()).float()).mean().backward()
        optimizer.step()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Conversions to float16 of what an optimizer steps."""
        kinds = {event.kind for event in source.events}
        if source.frameworks & _OWNERS or not {"backward", "optimizer_step"} <= kinds or "scale" in kinds:
            return
        if source.kinds.scaler_constructors() or casts_back(source):
            return
        seen = set()
        for optimizer, model in trained(source):
            for conversion in conversions(source, model, "float16"):
                if conversion in seen or not is_in_force(source, conversion, optimizer):
                    continue
                seen.add(conversion)
                message = (
                    f"{source.segment(model)} is trained with float16 weights and no loss scaling, small gradients and "
                    "updates become 0: keep float32 weights, and use autocast with a GradScaler or bfloat16"
                )
                yield source.finding(self, conversion, message)
