"""AMP208: an argument that autocast does not take, or not in that place."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

from amptune.core.finding import Edit, Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.fold import UNKNOWN, UNKNOWN_DTYPE
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._reach import values_through_callers

_GENERIC = "torch.amp.autocast"
_OLD_DEVICES = {"torch.cuda.amp.autocast": "cuda", "torch.cpu.amp.autocast": "cpu"}
_OLD_PLACES = ("enabled", "dtype", "cache_enabled")
_PLACES = ("device_type", "dtype", "enabled", "cache_enabled")
_HALF = frozenset({"float16", "bfloat16"})
_NO_DEVICES = frozenset({"gpu", "nvidia", "half", "fp16", "bf16", "float16", "bfloat16", "auto", "amp"})
_SWITCH = re.compile(r"^_?(?:use_|enable_|with_|is_)?(?:amp|mixed_precision|autocast)(?:_enabled)?$|^enabled?$")
_DTYPE_TEXTS = {"float16": "float16", "fp16": "float16", "half": "float16", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_TENSOR_NAMES = frozenset(
    {"x1", "x2", "input", "inputs", "image", "images", "hidden_states", "tensor", "logits", "features", "latents",
     "query", "key", "value"}
)  # fmt: skip
_SETTINGS = ("self", "cls", "args", "opt", "opts", "cfg", "config", "conf", "hparams", "options", "params", "settings")


class AutocastBadKwarg(SourceRule):
    """autocast gets an argument that it does not take, or one in another's place.

    ## What it does
    Flags `device_type` (or a device name) given to `torch.cuda.amp.autocast`, a `torch.device` object or a switch where
    `torch.autocast` wants the device's name, a switch or a string where it wants the dtype, keywords that do not exist,
    and dtypes that turn the region off (float32 on a CPU, a warning).

    ## Why is this bad
    It raises TypeError, ValueError or RuntimeError when the region is made or entered. The order of the arguments
    differs: `torch.cuda.amp.autocast(enabled, dtype)`, but `torch.autocast(device_type, dtype, enabled)`. With a dtype
    that a CPU or MPS region does not support, autocast prints a UserWarning, and the whole region runs without it.

    ## Example
    ```python
    import torch
    with torch.autocast(torch.device("cuda"), dtype=torch.bfloat16):
        loss = model(x)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
    ```

    ## Fix safety
    Safe: the call raises as it stands, and the fix only names or spells what is there. No fix where the meaning is not
    plain.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    """

    code = "AMP208"
    name = "autocast-bad-kwarg"
    severity = Severity.ERROR
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "device for the class that has one",
            """\
import torch

def loss_of(model, x):
    with torch.cuda.amp.autocast(device_type="cuda", dtype=torch.bfloat16):  # <- AMP208@34, AMP401
        a = model(x)
    with torch.cuda.amp.autocast("cuda"):  # <- AMP208@34, AMP401
        return a + model(x)
""",
            fixed="""\
import torch

def loss_of(model, x):
    with torch.cuda.amp.autocast(dtype=torch.bfloat16):
        a = model(x)
    with torch.cuda.amp.autocast():
        return a + model(x)
""",
        ),
        Example(
            "device objects",
            """\
import torch

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

def loss_of(model, x):
    with torch.autocast(device_type=device), torch.autocast(torch.device("cuda:1")):  # <- AMP208@25, AMP208@61
        a = model(x)
    with torch.autocast(next(model.parameters()).device), torch.autocast(x.device, enabled=True):  # <- AMP208, AMP208
        return a + model(x)
""",
            fixed="""\
import torch

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

def loss_of(model, x):
    with torch.autocast(device_type=device.type), torch.autocast("cuda"):
        a = model(x)
    with torch.autocast(next(model.parameters()).device.type), torch.autocast(x.device.type, enabled=True):
        return a + model(x)
""",
        ),
        Example(
            "a switch where the dtype goes, and where the device goes",
            """\
import torch

def loss_of(model, x, use_amp: bool):
    with torch.autocast("cuda", use_amp), torch.autocast("cuda", True):  # <- AMP208@33, AMP208@66
        a = model(x)
    with torch.autocast(use_amp):  # <- AMP208@25
        return a + model(x)
""",
            fixed="""\
import torch

def loss_of(model, x, use_amp: bool):
    with torch.autocast("cuda", enabled=use_amp), torch.autocast("cuda", enabled=True):
        a = model(x)
    with torch.autocast(use_amp):  # <- AMP208
        return a + model(x)
""",
        ),
        Example(
            "strings and keywords that do not exist",
            """\
import torch

def loss_of(model, x):
    with torch.autocast(device="cuda", dtype="bf16"):  # <- AMP208@25, AMP208@40
        a = model(x)
    with torch.autocast("gpu"), torch.autocast("cuda", fast=True):  # <- AMP208@25, AMP208@56
        return a + model(x)
""",
            fixed="""\
import torch

def loss_of(model, x):
    with torch.autocast(device_type="cuda", dtype=torch.bfloat16):
        a = model(x)
    with torch.autocast("cuda"), torch.autocast("cuda", fast=True):  # <- AMP208
        return a + model(x)
""",
        ),
        Example(
            "a dtype that turns the region off",
            """\
import torch

def loss_of(model, x):
    with torch.autocast("cpu", dtype=torch.float32):  # <- AMP208@32
        return model(x)
""",
        ),
    )
    VALID = (
        Example(
            "each in its place",
            """\
import torch

def loss_of(model, x, use_amp, dtype):
    with torch.autocast("cuda:0", torch.bfloat16, use_amp), torch.autocast("cpu", dtype, cache_enabled=False):
        return model(x)
""",
        ),
        Example(
            "names of devices, also from settings",
            """\
import torch

class Trainer:
    def __init__(self, config, device="cuda"):
        self.config, self.device = config, device

    def loss(self, model, x):
        with torch.autocast(self.device), torch.autocast(self.config.device), torch.autocast(x.device.type):
            return model(x)
""",
        ),
        Example(
            "the old class with its own arguments",
            """\
from torch.cuda.amp import autocast

def loss_of(model, x, use_amp):
    with autocast(use_amp), autocast(True, x.dtype):  # <- AMP401, AMP401
        return model(x)
""",
        ),
        Example(
            "float32 on CUDA casts to float32, and in a region that is off",
            """\
import torch

def loss_of(model, x):
    with torch.autocast("cuda", dtype=torch.float32), torch.autocast("cpu", dtype=torch.float32, enabled=False):
        return model(x)
""",
        ),
        Example(
            "another library's autocast",
            """\
from mylib import autocast

def loss_of(model, x, device):
    with autocast(device=device, dtype="fp16"):
        return model(x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Autocast calls, argument by argument."""
        for call in source.calls(_GENERIC, *_OLD_DEVICES):
            names = source.qualified(call.func)
            if len(names) != 1:
                continue
            if names[0] == _GENERIC:
                yield from self._generic(source, call)
            else:
                yield from self._old(source, call, _OLD_DEVICES[names[0]])
            yield from self._keywords(source, call, _PLACES if names[0] == _GENERIC else _OLD_PLACES)

    def _keywords(self, source: SourceFile, call: ast.Call, known: tuple[str, ...]) -> Iterator[Finding]:
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in known or (keyword.arg == "device_type" and known is _OLD_PLACES):
                continue
            fix = None
            if keyword.arg == "device" and known is _PLACES and isinstance(source.constant(keyword.value), str):
                text = f"device_type={source.segment(keyword.value)}"
                fix = Fix("name it device_type", (edits.replace(source, keyword, text),))
            message = f"autocast has no argument {keyword.arg!r} (TypeError): it takes {', '.join(known)}"
            yield source.finding(self, keyword, message, fix=fix)

    def _old(self, source: SourceFile, call: ast.Call, device: str) -> Iterator[Finding]:
        argument = source.argument(call, "device_type")
        if argument is None:
            argument = source.argument(call, "enabled", 0)
            if argument is None or not isinstance(source.constant(argument), str):
                return
        name = f"torch.{device}.amp.autocast"
        keyword = next((item for item in call.keywords if item.value is argument), None)
        fix = None
        lone = keyword is not None or len(call.args) == 1
        if lone and str(source.constant(argument)).partition(":")[0] == device:
            fix = Fix("drop the device", (edits.delete_argument(source, call, argument),))
        message = f"{name} takes no device (TypeError), it is for {device}: drop it, or use torch.autocast"
        yield source.finding(self, keyword or argument, message, fix=fix)

    def _generic(self, source: SourceFile, call: ast.Call) -> Iterator[Finding]:
        device, dtype = source.argument(call, "device_type", 0), source.argument(call, "dtype", 1)
        checks: tuple[tuple[ast.expr | None, Callable[[SourceFile, ast.Call, ast.expr], _Verdict | None]], ...]
        checks = ((device, _check_device), (dtype, _check_dtype))
        for argument, check in checks:
            found = check(source, call, argument) if argument is not None else None
            if found is not None and argument is not None:
                severity, message, fix = found
                keyword = next((item for item in call.keywords if item.value is argument), None)
                yield source.finding(self, keyword or argument, message, severity=severity, fix=fix)


_Verdict = tuple[Severity, str, Fix | None]


def _check_device(source: SourceFile, call: ast.Call, argument: ast.expr) -> _Verdict | None:
    value = source.constant(argument)
    if isinstance(value, str) and value.lower() in _NO_DEVICES:
        fix = Fix('use "cuda"', (edits.replace(source, argument, '"cuda"'),)) if value.lower() == "gpu" else None
        return Severity.ERROR, f'{value!r} is no device type (RuntimeError): use "cuda" or "cpu"', fix
    if _is_switch(source, argument):
        return Severity.ERROR, "the first argument is the device, not a switch (ValueError): say enabled=", None
    if _is_device_object(source, argument):
        fix = Fix("use the device's type", (_device_edit(source, argument),))
        return Severity.ERROR, "autocast wants the name of a device (ValueError for a torch.device): use .type", fix
    return None


def _check_dtype(source: SourceFile, call: ast.Call, argument: ast.expr) -> _Verdict | None:
    value = source.constant(argument)
    if isinstance(value, str):
        name = _DTYPE_TEXTS.get(value)
        fix = Fix("use the dtype", (edits.replace(source, argument, f"torch.{name}"),), imports=("import torch",))
        literal = isinstance(argument, ast.Constant) and name is not None
        message = f"dtype is {value!r}, a string (TypeError): use torch.{name or 'bfloat16'}"
        return Severity.ERROR, message, fix if literal else None
    by_position = argument in call.args
    if by_position and _is_switch(source, argument):
        named: Fix | None = None
        if len(call.args) == 2 and not any(keyword.arg == "enabled" for keyword in call.keywords):
            named = Fix("say enabled=", (edits.replace(source, argument, f"enabled={source.segment(argument)}"),))
        return Severity.ERROR, "the second argument is the dtype, not a switch (TypeError): say enabled=", named
    if by_position and UNKNOWN_DTYPE in source.dtypes(argument) and _SWITCH.search(last_name(argument)):
        message = "the second argument is the dtype; if this is a switch, say enabled="
        return Severity.INFO, message, None
    return _check_support(source, call, argument)


def _check_support(source: SourceFile, call: ast.Call, argument: ast.expr) -> _Verdict | None:
    """A dtype that a region on a CPU, and the like, does not have; CUDA takes float32 and casts to it."""
    region = source.region_stacks.as_region(call)
    dtypes = source.dtypes(argument)
    if region.device in (None, "cuda") or region.enabled is False or not dtypes or UNKNOWN_DTYPE in dtypes:
        return None
    if not dtypes.isdisjoint(_HALF):
        return None
    text = " or ".join(sorted(dtypes))
    message = f"{region.device} autocast does not support {text} and turns itself off: use bfloat16, or enabled=False"
    return Severity.WARNING, message, None


def _is_switch(source: SourceFile, node: ast.expr) -> bool:
    """Whether the expression is surely a bool."""
    if isinstance(source.constant(node), bool):
        return True
    leaves = source.values(node)
    return bool(leaves) and all(_is_bool(source, leaf) for leaf in leaves)


def _is_bool(source: SourceFile, leaf: ast.expr) -> bool:
    if isinstance(leaf, ast.Compare) or isinstance(source.constant(leaf), bool):
        return True
    if isinstance(leaf, ast.UnaryOp):
        return isinstance(leaf.op, ast.Not)
    if isinstance(leaf, ast.Call):
        return source.qualified(leaf.func) in (("torch.cuda.is_available",), ("bool",))
    bindings = source.bindings(leaf) if isinstance(leaf, ast.Name) else []
    if len(bindings) != 1 or bindings[0].kind != "parameter":
        return False
    parameter = bindings[0].node
    annotation = parameter.annotation if isinstance(parameter, ast.arg | ast.AnnAssign) else None
    default = source.constant(bindings[0].value) if bindings[0].value is not None else UNKNOWN
    return source.qualified(annotation) == ("bool",) or isinstance(default, bool)


def _is_device_object(source: SourceFile, node: ast.expr) -> bool:
    """Whether the expression is surely a torch.device: made here, or the device of a tensor or parameter."""
    leaves = values_through_callers(source, node)
    return bool(leaves) and all(_is_device(source, leaf) for leaf in leaves)


def _is_device(source: SourceFile, leaf: ast.expr) -> bool:
    if isinstance(leaf, ast.Call):
        return source.qualified(leaf.func) == ("torch.device",)
    if isinstance(leaf, ast.Name):
        return _annotation(source, leaf) == ("torch.device",)
    if not isinstance(leaf, ast.Attribute) or leaf.attr != "device":
        return False
    owner = leaf.value
    if isinstance(owner, ast.Call):  # next(model.parameters()).device
        return source.qualified(owner.func) == ("next",)
    if not isinstance(owner, ast.Name) or owner.id in _SETTINGS:
        return False
    if _annotation(source, owner) in (("torch.Tensor",), ("torch.nn.Parameter",)):
        return True
    return any(isinstance(binding.node, ast.arg) for binding in source.bindings(owner)) and _is_tensor_name(owner.id)


def _annotation(source: SourceFile, name: ast.Name) -> tuple[str, ...]:
    """The qualified name that a parameter is annotated with."""
    bindings = source.bindings(name)
    parameter = bindings[0].node if len(bindings) == 1 else None
    return source.qualified(parameter.annotation) if isinstance(parameter, ast.arg) else ()


def _is_tensor_name(name: str) -> bool:
    """Whether a parameter of this name is a tensor, and not an object that may keep its device as text."""
    return len(name) == 1 or name in _TENSOR_NAMES


def _device_edit(source: SourceFile, argument: ast.expr) -> Edit:
    if isinstance(argument, ast.Call) and source.qualified(argument.func) == ("torch.device",) and argument.args:
        name = source.constant(argument.args[0])
        if isinstance(name, str):
            return edits.replace(source, argument, f'"{name.partition(":")[0]}"')
    return edits.wrap(source, argument, "", ".type")
