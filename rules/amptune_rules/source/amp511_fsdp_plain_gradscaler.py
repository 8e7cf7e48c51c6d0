"""AMP511: a model sharded by FSDP is trained with torch's plain GradScaler."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.fold import UNKNOWN, UNKNOWN_DTYPE
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import root
from amptune_rules.source._identifiers import identifiers

_FSDP = ("torch.distributed.fsdp.FullyShardedDataParallel", "fairscale.nn.FullyShardedDataParallel",
         "fairscale.nn.data_parallel.FullyShardedDataParallel")  # fmt: skip
_PLAIN = ("torch.amp.GradScaler", "torch.cuda.amp.GradScaler")
_POLICIES = ("torch.distributed.fsdp.MixedPrecision", "torch.distributed.fsdp.MixedPrecisionPolicy")
_IMPORT = "from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler"


class FsdpPlainGradscaler(SourceRule):
    """A model wrapped in FullyShardedDataParallel is trained with GradScaler instead of ShardedGradScaler.

    ## What it does
    Flags an enabled `torch.amp.GradScaler` in a file that wraps a model in FSDP (`FullyShardedDataParallel` of torch or
    fairscale), unless the file has a `ShardedGradScaler` too, or trains in bfloat16.

    ## Why is this bad
    Each rank holds other pieces of the gradients. The plain scaler looks for infinities in its own piece only: one rank
    skips the step, the others take it, and their scales part. Weights are then a mix of two steps, without an error.

    ## Example
    ```python
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    model = FSDP(model)
    scaler = torch.amp.GradScaler("cuda")
    ```

    ## Use instead
    ```python
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
    model = FSDP(model)
    scaler = ShardedGradScaler()
    ```

    ## Fix safety
    Unsafe: ShardedGradScaler needs an initialised process group where it is made. FSDP2 (`fully_shard`) works with the
    plain scaler, whose infinity check is reduced over DTensors.

    ## References
    - https://docs.pytorch.org/docs/stable/fsdp.html
    - https://github.com/pytorch/pytorch/blob/main/torch/distributed/fsdp/sharded_grad_scaler.py
    """

    code = "AMP511"
    name = "fsdp-plain-gradscaler"
    severity = Severity.WARNING
    keywords = (b"FullyShardedDataParallel",)
    requires = (b"GradScaler",)

    INVALID = (
        Example(
            "the usual names",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

def train(model, loader, optimizer):
    model = FSDP(model)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)  # <- AMP511@14
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
            fixed="""\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

def train(model, loader, optimizer):
    model = FSDP(model)
    scaler = ShardedGradScaler("cuda", init_scale=1024.0)
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "by modules, float16 policy, the scaler on self",
            """\
import torch.distributed.fsdp as fsdp
import torch
from torch.amp import GradScaler

class Trainer:
    def __init__(self, model):
        policy = fsdp.MixedPrecision(param_dtype=torch.float16)
        self.model = fsdp.FullyShardedDataParallel(model, mixed_precision=policy)
        self.scaler = GradScaler(enabled=True)  # <- AMP511@23
""",
            fixed="""\
import torch.distributed.fsdp as fsdp
import torch
from torch.amp import GradScaler
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

class Trainer:
    def __init__(self, model):
        policy = fsdp.MixedPrecision(param_dtype=torch.float16)
        self.model = fsdp.FullyShardedDataParallel(model, mixed_precision=policy)
        self.scaler = ShardedGradScaler(enabled=True)
""",
        ),
    )
    VALID = (
        Example(
            "the sharded scaler where it is needed",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

def make(model, sharded):
    scaler = ShardedGradScaler() if sharded else torch.amp.GradScaler("cuda")
    return FSDP(model) if sharded else model, scaler
""",
        ),
        Example(
            "FSDP2",
            """\
import torch
from torch.distributed.fsdp import fully_shard  # instead of FullyShardedDataParallel

def make(model):
    fully_shard(model)
    return torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "bfloat16, the scaler off",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, MixedPrecision

def make(model):
    model = FSDP(model, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))
    return model, torch.amp.GradScaler("cuda", enabled=False)
""",
        ),
        Example(
            "only asked whether a model is sharded",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

scaler = torch.amp.GradScaler("cuda")

def unwrap(model):
    return model.module if isinstance(model, FSDP) else model
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Plain scalers in a file that wraps models."""
        wraps = [call for call in source.calls(*_FSDP) if not source.has_splat(call) or call.args]
        if not wraps or "ShardedGradScaler" in identifiers(source) or _is_bf16(source):
            return
        for call in source.kinds.scaler_constructors():
            if not set(_PLAIN) & set(source.qualified(call.func)) or _is_off(source, call):
                continue
            fix = None
            if all(name.startswith("torch.") for wrap in wraps for name in source.qualified(wrap.func)):
                fix = _fix(source, call)
            message = (
                "GradScaler with FullyShardedDataParallel: each rank finds infinities in its own shard only, "
                "and ranks disagree about skipping; use ShardedGradScaler"
            )
            yield source.finding(self, call, message, fix=fix)


def _is_off(source: SourceFile, call: ast.Call) -> bool:
    value = source.constant(source.kinds.enabled_by(call))
    return value is not UNKNOWN and not value


def _is_bf16(source: SourceFile) -> bool:
    """Whether everything that the file says about 16-bit formats is bfloat16."""
    dtypes: set[str] = set()
    for call in source.calls(*_POLICIES):
        dtypes |= source.dtypes(source.argument(call, "param_dtype", 0))
    for region in source.region_stacks.autocasts():
        dtypes |= region.dtypes
    return "bfloat16" in dtypes and "float16" not in dtypes and UNKNOWN_DTYPE not in dtypes


def _fix(source: SourceFile, call: ast.Call) -> Fix | None:
    """ShardedGradScaler takes the arguments of torch.amp.GradScaler; the class of torch.cuda.amp has no device."""
    if call.args and "torch.amp.GradScaler" not in source.qualified(call.func):
        return None
    if not source.bindings(root(call.func)):
        return None
    change: Edit = edits.replace(source, call.func, "ShardedGradScaler")
    return Fix("use ShardedGradScaler", (change,), Safety.UNSAFE, (_IMPORT,))
