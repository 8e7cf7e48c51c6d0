"""AMP512: FSDP casts to one 16-bit format, and autocast to another."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._models import is_torch_autocast

_V1 = "torch.distributed.fsdp.MixedPrecision"
_V2 = "torch.distributed.fsdp.MixedPrecisionPolicy"
_HALF = frozenset({"float16", "bfloat16"})


class FsdpMpConflict(SourceRule):
    """FSDP's mixed precision and autocast use different 16-bit formats, or gradients are reduced in float16.

    ## What it does
    Flags a training `autocast` region whose 16-bit dtype is not the `param_dtype` of the FSDP `MixedPrecision` (or
    FSDP2's `MixedPrecisionPolicy`) in the same file; and, as info, `reduce_dtype=torch.float16` without `buffer_dtype`.

    ## Why is this bad
    FSDP casts parameters and inputs to its `param_dtype` before the forward; autocast then casts them again for each
    matmul. The result has the short mantissa of bfloat16 and the small range of float16 at the price of an extra cast
    for each op. Gradients that are summed over ranks in float16 overflow at 65504.

    ## Example
    ```python
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, MixedPrecision
    model = FSDP(model, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        loss.backward()
    ```

    ## Use instead
    ```python
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, MixedPrecision
    model = FSDP(model, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))
    for x in loader:
        loss = model(x)
        loss.backward()
    ```

    ## Fix safety
    No fix: either of the two may be the one that is meant.

    ## References
    - https://docs.pytorch.org/docs/stable/fsdp.html#torch.distributed.fsdp.MixedPrecision
    """

    code = "AMP512"
    name = "fsdp-mp-conflict"
    severity = Severity.WARNING
    keywords = (b"autocast", b"reduce_dtype")
    requires = (b"MixedPrecision",)

    INVALID = (
        Example(
            "autocast's default beside bfloat16",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

POLICY = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

def train(model, loader, optimizer):
    model = FullyShardedDataParallel(model, mixed_precision=POLICY)
    for x in loader:
        with torch.autocast("cuda"):  # <- AMP512@14, AMP118
            loss = model(x)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "FSDP2",
            """\
import torch
import torch.distributed.fsdp as fsdp

def train(model, loader, optimizer):
    dtype = torch.float16
    fsdp.fully_shard(model, mp_policy=fsdp.MixedPrecisionPolicy(param_dtype=dtype))
    for x in loader:
        with torch.autocast(device_type="cuda", dtype=torch.bfloat16):  # <- AMP512
            loss = model(x)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "reduced in float16, at severity info",
            """\
import torch
from torch.distributed.fsdp import MixedPrecision

policy = MixedPrecision(param_dtype=torch.float16, reduce_dtype=torch.float16)  # <- AMP512
""",
        ),
    )
    VALID = (
        Example(
            "the same format",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

def train(model, loader, optimizer):
    policy = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
    model = FullyShardedDataParallel(model, mixed_precision=policy)
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "float32 parameters, autocast decides",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

def loss_of(model, x):
    model = FullyShardedDataParallel(model, mixed_precision=MixedPrecision(reduce_dtype=torch.float32))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x)
""",
        ),
        Example(
            "one or the other, by an option",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

def loss_of(model, x, sharded):
    if sharded:
        model = FullyShardedDataParallel(model, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))
        return model(x)
    else:
        with torch.autocast("cuda", dtype=torch.float16):
            return model(x)
""",
        ),
        Example(
            "evaluation, and a region that is off",
            """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

def wrap(model):
    return FullyShardedDataParallel(model, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))

@torch.no_grad()
def evaluate(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        return model(x)

def exact(norm, x):
    with torch.autocast("cuda", enabled=False):
        return norm(x.float())
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Policies of the file against its autocast regions."""
        policies = [call for call in source.calls(_V1, _V2) if not source.has_splat(call)]
        for call in policies:
            if source.dtypes(source.argument(call, "reduce_dtype", 1)) == {"float16"} and _no_buffer_dtype(
                source, call
            ):
                message = (
                    "gradients are summed over ranks in float16, which overflows at 65504: "
                    "reduce_dtype=torch.float32, and set buffer_dtype as well"
                )
                yield source.finding(self, call, message, severity=Severity.INFO)
        dtypes = {source.dtypes(source.argument(call, "param_dtype", 0)) for call in policies}
        if len(dtypes) != 1:
            return
        dtype = next(iter(dtypes))
        if len(dtype) != 1 or not dtype <= _HALF:
            return
        for region in source.region_stacks.autocasts():
            if self._conflicts(source, region, dtype) and not any(_excludes(source, p, region.call) for p in policies):
                yield self._conflict(source, region, next(iter(dtype)))

    def _conflicts(self, source: SourceFile, region: Region, dtype: frozenset[str]) -> bool:
        other = region.dtypes - dtype
        return (
            is_torch_autocast(source, region)
            and region.enabled is not False
            and region.device != "cpu"
            and len(region.dtypes) == 1
            and other <= _HALF
            and bool(other)
            and not source.no_grad(region.call)
        )

    def _conflict(self, source: SourceFile, region: Region, dtype: str) -> Finding:
        used = next(iter(region.dtypes))
        message = f"autocast to {used} in a model that FSDP casts to {dtype}: use torch.{dtype}, or leave autocast out"
        return source.finding(self, region.call, message, severity=None if region.enabled else Severity.INFO)


def _no_buffer_dtype(source: SourceFile, call: ast.Call) -> bool:
    """Whether the policy is one of FSDP1, and its buffers keep their dtype."""
    return _V1 in source.qualified(call.func) and source.argument(call, "buffer_dtype", 2) is None


def _excludes(source: SourceFile, first: ast.AST, second: ast.AST) -> bool:
    """Whether the two are on different sides of one ``if``."""
    sides = {}
    child: ast.AST = first
    for ancestor in source.ancestors(first):
        if isinstance(ancestor, ast.If):
            sides[ancestor] = child in ancestor.body
        child = ancestor
    child = second
    for ancestor in source.ancestors(second):
        if isinstance(ancestor, ast.If) and ancestor in sides and sides[ancestor] is not (child in ancestor.body):
            return True
        child = ancestor
    return False
