"""AMP604: bfloat16 is chosen by a test that GPUs without bfloat16 units pass."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.fold import UNKNOWN
from amptune.lint.index import FUNCTIONS, last_name
from amptune.lint.source import SourceFile

_SUPPORTED = "torch.cuda.is_bf16_supported"
_CAPABILITY = "torch.cuda.get_device_capability"
_NATIVE = (8, 0)
_BF16 = re.compile(r"bf16|bfloat16", re.IGNORECASE)
_OTHER_TEST = re.compile(r"capability|rocm|(?:^|_)hip(?:_|$)|compute_cap", re.IGNORECASE)
_SAYS = ("print", "info", "debug", "warning", "log", "warn", "skipif", "skip", "skipIf", "skipUnless", "skip_if")


class Bf16WithoutNativeCheck(SourceRule):
    """bfloat16 is chosen by a test that also V100 and T4 pass, which only emulate it.

    ## What it does
    Flags `torch.cuda.is_bf16_supported()` without `including_emulation=False` where it decides something, and tests of
    the compute capability under 8.0 that choose bfloat16. Info where the answer is passed on, or only checked.

    ## Why is this bad
    The call is True on any GPU that can hold bfloat16, V100 (7.0) and T4 (7.5) too, which have no units for it: matmuls
    are emulated and slower than in float32, cuDNN has no bfloat16 convolution there. float16 is what those are fast in.

    ## Example
    ```python
    import torch
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    ```

    ## Use instead
    ```python
    import torch
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    ```

    ## Fix safety
    Unsafe: on the older GPUs the program takes its other branch afterwards, often float16, which needs a GradScaler.
    No fix for a test of the compute capability.

    ## References
    - https://github.com/pytorch/pytorch/pull/148322
    - https://github.com/huggingface/diffusers/issues/14129
    """

    code = "AMP604"
    name = "bf16-without-native-check"
    severity = Severity.WARNING
    keywords = (b"is_bf16_supported", b"get_device_capability")
    requires = (b"bf",)

    INVALID = (
        Example(
            "as a choice and as flags",
            """\
import torch
from torch.cuda import is_bf16_supported

DTYPE = torch.bfloat16 if is_bf16_supported() else torch.float16  # <- AMP604@27

def settings():
    use_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()  # <- AMP604@46
    return {"bf16": use_bf16, "fp16": not use_bf16}
""",
            fixed="""\
import torch
from torch.cuda import is_bf16_supported

DTYPE = torch.bfloat16 if is_bf16_supported(including_emulation=False) else torch.float16

def settings():
    use_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return {"bf16": use_bf16, "fp16": not use_bf16}
""",
        ),
        Example(
            "a compute capability that is too low",
            """\
import torch

dtype = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 7 else torch.float32  # <- AMP604@27

def autocast_dtype(device):
    if torch.cuda.get_device_capability(device) >= (7, 5):  # <- AMP604@8
        return torch.bfloat16
    return torch.float16

major, minor = torch.cuda.get_device_capability()
use_bf16 = major > 6  # <- AMP604@12
""",
        ),
    )
    VALID = (
        Example(
            "without emulation",
            """\
import torch

dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
""",
        ),
        Example(
            "with the compute capability as well",
            """\
import torch

def use_bf16():
    return torch.cuda.get_device_capability() >= (8, 0) and torch.cuda.is_bf16_supported()
""",
        ),
        Example(
            "only printed, or to skip a test",
            """\
import pytest
import torch

print("bfloat16:", torch.cuda.is_bf16_supported())

@pytest.mark.skipif(not torch.cuda.is_bf16_supported(), reason="no bfloat16")
def test_bf16():
    assert torch.zeros(1, dtype=torch.bfloat16).item() == 0
""",
        ),
        Example(
            "a capability that chooses something else",
            """\
import torch

use_fp16 = torch.cuda.get_device_capability()[0] >= 7
dtype = torch.bfloat16 if torch.cuda.get_device_capability()[0] > 7 else torch.float16
""",
        ),
        Example(
            "written down among facts about the machine",
            """\
import torch

bf16_support = False
if torch.cuda.is_available():
    bf16_support = torch.cuda.is_bf16_supported()
torch_info = {"version": torch.__version__, "bf16_support": bf16_support}
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls of the two functions that decide about bfloat16."""
        for call in source.calls(_SUPPORTED):
            emulation = source.argument(call, "including_emulation", 0)
            if source.constant(emulation) not in (True, UNKNOWN) or not _decides(source, call):
                continue
            if emulation is not None and source.constant(emulation) is UNKNOWN:
                continue
            message = (
                "is_bf16_supported() is True on V100 and T4, which emulate bfloat16 slower than float32: "
                "pass including_emulation=False"
            )
            edit = edits.add_argument(source, call, "including_emulation=False")
            if emulation is not None:
                edit = edits.replace(source, emulation, "False")
            fix = Fix("leave emulation out", (edit,), Safety.UNSAFE)
            severity = None if _selects_bf16(source, call) else Severity.INFO
            yield source.finding(self, call, message, severity=severity, fix=fix)
        for node in _capabilities(source):
            test = _test_of(source, node)
            least = _least_capability(source, test) if test is not None else None
            if test is not None and least is not None and (6, 0) <= least < _NATIVE and _chooses_bf16(source, test):
                shown = f"{least[0]}.{least[1]}"
                message = f"bfloat16 from compute capability {shown} on, but its units begin with 8.0: test for (8, 0)"
                yield source.finding(self, test, message)


def _decides(source: SourceFile, call: ast.Call) -> bool:
    """Whether the answer decides something, alone: not one that is shown, or asked together with the capability."""
    child: ast.AST = call
    for ancestor in source.ancestors(call):
        if isinstance(ancestor, ast.BoolOp) and any(_asks_otherwise(source, item) for item in ancestor.values):
            return False
        if isinstance(ancestor, ast.If) and child in ancestor.body and _asks_otherwise(source, ancestor.test):
            return False
        if isinstance(ancestor, ast.Call) and child is not ancestor.func and last_name(ancestor.func) in _SAYS:
            return False
        if isinstance(ancestor, FUNCTIONS):
            return child not in ancestor.decorator_list and not ancestor.name.startswith("test")
        if isinstance(ancestor, ast.Assert | ast.JoinedStr | ast.ClassDef):
            return False
        if isinstance(ancestor, ast.Assign) and _is_recorded(source, last_name(ancestor.targets[0])):
            return False
        child = ancestor
    return True


def _asks_otherwise(source: SourceFile, node: ast.expr) -> bool:
    """Whether a condition asks for the compute capability, or for an AMD GPU, all of which have bfloat16."""
    for item in ast.walk(node):
        if isinstance(item, ast.Name | ast.Attribute):
            if _OTHER_TEST.search(last_name(item)) or _is_capability(source, item):
                return True
        elif isinstance(item, ast.Constant) and isinstance(item.value, str) and item.value in ("hip", "rocm"):
            return True
    return False


def _is_capability(source: SourceFile, node: ast.expr) -> bool:
    values = [binding.value for binding in source.bindings(node) if isinstance(binding.value, ast.Call)]
    return any(_CAPABILITY in source.qualified(value.func) for value in values)


def _selects_bf16(source: SourceFile, call: ast.Call) -> bool:
    """Whether bfloat16 is chosen by the answer, here; a check that raises, or a function that passes it on, is not."""
    child: ast.AST = call
    for ancestor in source.ancestors(call):
        match ancestor:
            case ast.IfExp(test=test, body=body, orelse=orelse) if child is test:
                return _names_bf16(body) or _names_bf16(orelse)
            case ast.If(test=test, body=body) if child is test:
                following = () if not isinstance(body[-1], ast.Return) else _after(source, ancestor)
                parts = (*body, *ancestor.orelse, *following)
                return not isinstance(body[-1], ast.Raise) and any(_names_bf16(part) for part in parts)
            case ast.Assign(targets=[ast.Name(id=name) | ast.Attribute(attr=name)]) | ast.keyword(arg=str() as name):
                return _BF16.search(name) is not None
            case ast.Dict(keys=keys, values=values) if child in values:
                key = keys[values.index(child)]
                return key is not None and _names_bf16(key)
            case ast.stmt():
                return False
        child = ancestor
    return False


def _is_recorded(source: SourceFile, name: str) -> bool:
    """Whether an answer of this name only goes into a table of what the machine can do."""
    uses = [node for node in source.nodes(ast.Name) if node.id == name and isinstance(node.ctx, ast.Load)]
    return "support" in name and bool(uses) and all(isinstance(source.parent(use), ast.Dict) for use in uses)


def _names_bf16(node: ast.AST) -> bool:
    return any(
        (isinstance(item, ast.Name | ast.Attribute) and _BF16.search(last_name(item)))
        or (isinstance(item, ast.Constant) and isinstance(item.value, str) and _BF16.match(item.value))
        for item in ast.walk(node)
    )


def _after(source: SourceFile, statement: ast.If) -> list[ast.stmt]:
    """Statements after an if in its block."""
    body = getattr(source.parent(statement), "body", [])
    return body[body.index(statement) + 1 :] if isinstance(body, list) and statement in body else []


def _capabilities(source: SourceFile) -> Iterator[ast.expr]:
    """Expressions that are the capability, or its first number by the name it was unpacked to."""
    for call in source.calls(_CAPABILITY):
        yield call
        assignment = source.parent(call)
        targets = assignment.targets if isinstance(assignment, ast.Assign) else []
        first = targets[0].elts[0] if targets and isinstance(targets[0], ast.Tuple) else targets[0] if targets else None
        for name in source.nodes(ast.Name) if isinstance(first, ast.Name) else ():
            if name.id == first.id and isinstance(name.ctx, ast.Load):  # type: ignore[union-attr]
                bindings = source.bindings(name)
                if len(bindings) == 1 and bindings[0].node is assignment:
                    yield name


def _test_of(source: SourceFile, capability: ast.expr) -> ast.Compare | None:
    """The comparison whose left side is the capability, or its first number."""
    node: ast.AST = capability
    parent = source.parent(node)
    if isinstance(parent, ast.Subscript) and source.constant(parent.slice) == 0:
        node, parent = parent, source.parent(parent)
    return parent if isinstance(parent, ast.Compare) and parent.left is node and len(parent.ops) == 1 else None


def _least_capability(source: SourceFile, test: ast.Compare) -> tuple[int, int] | None:
    """The lowest capability that passes ``>=`` or ``>``."""
    bound = source.constant(test.comparators[0])
    if bound is UNKNOWN or not isinstance(test.ops[0], ast.GtE | ast.Gt):
        return None
    strict = isinstance(test.ops[0], ast.Gt)
    if isinstance(bound, int):
        return (bound + strict, 0)
    if isinstance(bound, tuple) and len(bound) == 2 and all(isinstance(item, int) for item in bound):
        return (bound[0], bound[1] + strict)
    return None


def _chooses_bf16(source: SourceFile, test: ast.Compare) -> bool:
    """Whether the comparison alone decides for bfloat16."""
    match source.parent(test):
        case ast.IfExp(test=condition, body=body) if condition is test:
            return source.dtypes(body) == {"bfloat16"}
        case ast.If(test=condition, body=body) if condition is test:
            values = [item.value for item in body if isinstance(item, ast.Assign | ast.Return)]
            return any(source.dtypes(value) == {"bfloat16"} for value in values)
        case ast.Assign(targets=[ast.Name(id=name) | ast.Attribute(attr=name)]) | ast.keyword(arg=str() as name):
            return "bf16" in name.lower() or "bfloat16" in name.lower()
    return False
