"""AMP109: a gradient scaler is switched on although the training runs in bfloat16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.fold import UNKNOWN, UNKNOWN_DTYPE
from amptune.lint.index import FUNCTIONS
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._trained import conversions, trained

_BF16 = frozenset({"bfloat16"})


class GradscalerWithBf16(SourceRule):
    """A GradScaler is enabled while autocast, or the parameters, are bfloat16.

    ## What it does
    Flags a `GradScaler` that is not `enabled=False` in a file whose autocast regions all use bfloat16 (warning), whose
    trained model is converted to bfloat16 (error), or whose regions may use either 16-bit dtype while the scaler is on
    in both cases (info).

    ## Why is this bad
    BF16 has the exponent range of FP32 (smallest normal 1.2e-38), so gradients do not underflow and there is nothing to
    scale; each step pays for the finite checks, and a step with an infinity is skipped silently. With BF16 parameters
    it raises: the CUDA kernel behind `unscale_` and `step` has no BFloat16 version.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
    ```

    ## Use instead
    ```python
    import torch
    dtype = torch.bfloat16
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    for x, y in loader:
        with torch.autocast("cuda", dtype=dtype):
            loss = loss_fn(model(x), y)
    ```

    ## Fix safety
    Unsafe: `enabled=` is added to the scaler, `dtype is torch.float16` where the dtype has a name that the scaler's
    line can use, else `False`. Checkpoints that hold the scaler's state load into a scaler that ignores it.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    - https://github.com/pytorch/pytorch/issues/127176
    """

    code = "AMP109"
    name = "gradscaler-with-bf16"
    severity = Severity.WARNING
    keywords = (b"GradScaler",)

    INVALID = (
        Example(
            "bf16 autocast",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")  # <- AMP109@14
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
            fixed="""\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "dtype has a name",
            """\
import torch

DTYPE = torch.bfloat16
scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=True)  # <- AMP109

def loss_of(model, x):
    with torch.autocast("cuda", dtype=DTYPE):
        return model(x)
""",
            fixed="""\
import torch

DTYPE = torch.bfloat16
scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=DTYPE is torch.float16)

def loss_of(model, x):
    with torch.autocast("cuda", dtype=DTYPE):
        return model(x)
""",
        ),
        Example(
            "bf16 parameters",
            """\
import torch

def train(model, loader):
    model = model.to("cuda", torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")  # <- AMP109
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
            fixed="""\
import torch

def train(model, loader):
    model = model.to("cuda", torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "dtype chosen at run time, scaler always on",
            """\
import torch

dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
scaler = torch.amp.GradScaler("cuda")  # <- AMP109

def loss_of(model, x):
    with torch.autocast("cuda", dtype=dtype):
        return model(x)
""",
            fixed="""\
import torch

dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)

def loss_of(model, x):
    with torch.autocast("cuda", dtype=dtype):
        return model(x)
""",
        ),
        Example(
            "FSDP2 in bfloat16",
            """\
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

class Trainer:
    def __init__(self, model):
        half = torch.bfloat16
        self.model = fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32))
        self.scaler = torch.amp.GradScaler("cuda")  # <- AMP109
""",
            fixed="""\
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

class Trainer:
    def __init__(self, model):
        half = torch.bfloat16
        self.model = fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32))
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)
""",
        ),
        Example(
            "made bfloat16 where it is built",
            """\
import torch

def train(loader):
    model = torch.nn.Linear(64, 64).cuda().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scaler = torch.amp.GradScaler("cuda")  # <- AMP109
    for x in loader:
        scaler.scale(model(x).float().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
""",
            fixed="""\
import torch

def train(loader):
    model = torch.nn.Linear(64, 64).cuda().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    for x in loader:
        scaler.scale(model(x).float().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )
    VALID = (
        Example(
            "FSDP in bfloat16 or float16, as the caller says",
            """\
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

def build(model, is_bf16):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if is_bf16 else torch.float16)
    return fully_shard(model, mp_policy=policy), ShardedGradScaler()
""",
        ),
        Example(
            "FSDP in bfloat16 where no scaler is made",
            """\
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

def build(model, is_bf16):
    if is_bf16:
        return fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)), None
    return model, torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "float16",
            """\
import torch

scaler = torch.amp.GradScaler("cuda")

def loss_of(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        return model(x)
""",
        ),
        Example(
            "on for float16 only",
            """\
import torch

dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
scaler = torch.amp.GradScaler("cuda", enabled=(dtype == torch.float16))

def loss_of(model, x):
    with torch.autocast("cuda", dtype=dtype):
        return model(x)
""",
        ),
        Example(
            "made in the float16 branch",
            """\
import torch

def make(precision):
    if precision == "bf16":
        return torch.autocast("cuda", dtype=torch.bfloat16), None
    return torch.autocast("cuda", dtype=torch.float16), torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "bfloat16 only in evaluation",
            """\
import torch

scaler = torch.amp.GradScaler("cuda")

def loss_of(model, x):
    with torch.autocast("cuda"):
        return model(x)

@torch.no_grad()
def evaluate(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x)
""",
        ),
        Example(
            "dtype comes from the caller",
            """\
import torch

def train(model, loader, dtype):
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", dtype=dtype):
        return model(next(loader)), scaler
""",
        ),
        Example(
            "FSDP casts the model to float16",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

def train(model, loader, optimizer):
    model = FullyShardedDataParallel(model, mixed_precision=MixedPrecision(param_dtype=torch.float16))
    scaler = ShardedGradScaler()
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):  # <- AMP512
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Scalers that are on, against the dtypes the file trains in."""
        scalers = [call for call in source.kinds.scaler_constructors() if self._may_be_on(source, call)]
        if not scalers:
            return
        regions = [region for region in source.region_stacks.autocasts() if _is_training(source, region)]
        models = _bf16_models(source)
        for call in scalers:
            if (model := _trained_with(source, models, call)) is not None:
                text = source.segment(model)
                message = f"GradScaler with bfloat16 parameters ({text}): step raises, no BFloat16 unscale kernel"
                severity = Severity.WARNING if _conditions(source, model) else Severity.ERROR
                yield self._finding(source, call, message, severity, regions)
            elif regions and all(region.dtypes == _BF16 for region in regions) and not _is_cast_to_half(source):
                message = (
                    "GradScaler with bfloat16 autocast: bfloat16 has the range of float32, there is nothing to scale"
                )
                yield self._finding(source, call, message, Severity.WARNING, regions)
            elif not regions and _is_sharded_in_bf16(source, call):
                message = "GradScaler with FSDP in bfloat16: it has the range of float32, there is nothing to scale"
                yield self._finding(source, call, message, Severity.WARNING, regions)
            elif any(region.dtypes == {"bfloat16", "float16"} for region in regions) and not _is_guarded(source, call):
                message = "GradScaler is on for float16 and bfloat16 autocast alike: only float16 needs it"
                yield self._finding(source, call, message, Severity.INFO, regions)

    def _may_be_on(self, source: SourceFile, call: ast.Call) -> bool:
        enabled = source.kinds.enabled_by(call)
        if enabled is None:
            return not source.has_splat(call)
        value = source.constant(enabled)
        return value is not UNKNOWN and bool(value)

    def _finding(
        self, source: SourceFile, call: ast.Call, message: str, severity: Severity, regions: list[Region]
    ) -> Finding:
        return source.finding(self, call, message, severity=severity, fix=self._fix(source, call, regions))

    def _fix(self, source: SourceFile, call: ast.Call, regions: list[Region]) -> Fix:
        value = "False"
        dtypes = [_dtype_argument(source, region) for region in regions]
        name = next((item for item in dtypes if isinstance(item, ast.Name)), None)
        if name is not None and _is_usable_at(source, name, call):
            value = f"{name.id} is torch.float16"
        old = source.kinds.enabled_by(call)
        edit: Edit = edits.replace(source, old, value) if old else edits.add_argument(source, call, f"enabled={value}")
        return Fix(f"set enabled={value}", (edit,), Safety.UNSAFE, ("import torch",) if "torch." in value else ())


def _is_training(source: SourceFile, region: Region) -> bool:
    return region.enabled is not False and not source.no_grad(region.call) and UNKNOWN_DTYPE not in region.dtypes


def _is_guarded(source: SourceFile, call: ast.Call) -> bool:
    """Whether the scaler is made under some condition, which may well be the dtype."""
    return source.enclosing(call, ast.If, ast.IfExp, ast.Match) is not None


def _dtype_argument(source: SourceFile, region: Region) -> ast.expr | None:
    if not isinstance(region.call, ast.Call):
        return None
    by_device = region.device is None or "torch.amp.autocast" in source.qualified(region.call.func)
    return source.argument(region.call, "dtype", 1 if by_device else None)


def _is_usable_at(source: SourceFile, name: ast.Name, call: ast.Call) -> bool:
    """Whether the name means the same at the call, and is bound before it."""
    there = source.scopes.lookup(name.id, call)
    if not there or there != source.bindings(name):
        return False
    return all(getattr(binding.node, "lineno", 0) < call.lineno for binding in there)


def _trained_with(source: SourceFile, conversions: list[ast.Call], scaler: ast.Call) -> ast.Call | None:
    """The conversion to bfloat16 that holds where the scaler is made; one under another condition may exclude it."""
    conditions = _conditions(source, scaler)
    return next((item for item in conversions if not conditions or _conditions(source, item) <= conditions), None)


def _conditions(source: SourceFile, node: ast.AST) -> frozenset[str]:
    """The tests of the conditions around a node in its function, with the side that it stands on."""
    found: set[str] = set()
    child = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, FUNCTIONS):
            break
        if isinstance(ancestor, ast.If | ast.IfExp) and child is not ancestor.test:
            body = ancestor.body if isinstance(ancestor.body, list) else [ancestor.body]
            found.add(f"{child in body} {source.segment(ancestor.test)}")
        child = ancestor
    return frozenset(found)


def _bf16_models(source: SourceFile) -> list[ast.Call]:
    """The conversions that make a trained model bfloat16."""
    found: list[ast.Call] = []
    called = {_receiver(source, call) for call in source.method_calls("parameters")}
    for call in source.method_calls("bfloat16"):
        if _receiver(source, call) in called:
            found.append(call)
    for call in source.method_calls("to"):
        dtypes = [source.dtypes(item) for item in (*call.args, *(keyword.value for keyword in call.keywords))]
        if _receiver(source, call) in called and _BF16 in dtypes:
            found.append(call)
    for _, model in trained(source):
        found += conversions(source, model, "bfloat16")
    return list(dict.fromkeys(found))


def _is_cast_to_half(source: SourceFile) -> bool:
    """Whether FSDP casts the model to float16, whatever autocast does."""
    return any(source.dtypes(source.argument(call, "param_dtype", 0)) == {"float16"} for call in _policies(source))


def _is_sharded_in_bf16(source: SourceFile, scaler: ast.Call) -> bool:
    """Whether FSDP computes in bfloat16 wherever the scaler is made, and no policy of the file has another dtype."""
    policies = _policies(source)
    if any(source.dtypes(source.argument(call, "param_dtype", 0)) != _BF16 for call in policies):
        return False
    conditions = _conditions(source, scaler)
    return any(_conditions(source, call) <= conditions for call in policies)


def _policies(source: SourceFile) -> list[ast.Call]:
    return list(source.calls("torch.distributed.fsdp.MixedPrecision", "torch.distributed.fsdp.MixedPrecisionPolicy"))


def _receiver(source: SourceFile, call: ast.Call) -> str:
    return source.segment(call.func.value) if isinstance(call.func, ast.Attribute) else ""
