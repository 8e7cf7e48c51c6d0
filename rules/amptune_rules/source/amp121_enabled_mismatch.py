"""AMP121: autocast and the scaler are switched on by different conditions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.fold import UNKNOWN
from amptune.lint.index import FUNCTIONS
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune.lint.words import Words

# A scaler that also asks for the dtype is on for float16 alone, on purpose; one that asks for the device likewise.
_ON_PURPOSE = re.compile(r"fp16|float16|half|bf16|bfloat|dtype|precision|cuda|device|cpu|mps|gpu", re.IGNORECASE)
_AFFIXES = re.compile(r"^(?:use|enable|enabled|is|with|do|has)_|_(?:enabled|on|flag|training)$|^_+")


class EnabledMismatch(SourceRule):
    """autocast(enabled=a) with GradScaler(enabled=b), where a and b are different conditions.

    ## What it does
    Compares the `enabled` of the training's autocast regions with that of the `GradScaler`. Two flags that differ, or a
    scaler that is off while float16 autocast is on, are warnings; a scaler that stays on while autocast has a switch is
    information.

    ## Why is this bad
    Float16 autocast without the scaler loses every gradient below 3e-8. A scaler without autocast multiplies FP32
    losses by 65536 and skips steps for nothing, so the FP32 run that a comparison relies on is not a plain one.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda", enabled=args.scale_loss)
    for x, y in loader:
        with torch.autocast("cuda", enabled=args.amp):
            loss = loss_fn(model(x), y)
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda", enabled=args.amp)
    for x, y in loader:
        with torch.autocast("cuda", enabled=args.amp):
            loss = loss_fn(model(x), y)
    ```

    ## Fix safety
    No fix. Which of the two flags is meant cannot be told from the code.

    ## References
    - https://docs.pytorch.org/tutorials/recipes/recipes/amp_recipe.html
    """

    code = "AMP121"
    name = "enabled-mismatch"
    severity = Severity.WARNING
    keywords = (b"GradScaler",)

    INVALID = (
        Example(
            "two flags",
            """\
import torch

def train(model, loader, optimizer, args):
    scaler = torch.amp.GradScaler("cuda", enabled=args.scale_loss)  # <- AMP121@14
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", enabled=args.amp):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "always float16, scaler off",
            """\
import torch

class Trainer:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda", enabled=False)  # <- AMP121

    def loss(self, x):
        with torch.autocast("cuda", dtype=torch.float16):
            return self.model(x)
""",
        ),
        Example(
            "always float16, scaler by a flag",
            """\
import torch

def train(model, loader, optimizer, use_amp):
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)  # <- AMP121
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "autocast has a switch, the scaler has none",
            """\
import torch

def train(model, loader, optimizer, use_amp):
    scaler = torch.amp.GradScaler("cuda")  # <- AMP121
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", enabled=use_amp):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )
    VALID = (
        Example(
            "one flag under two names",
            """\
import torch

class Trainer:
    def __init__(self, args):
        self.use_amp = args.amp
        self.scaler = torch.amp.GradScaler("cuda", enabled=args.amp)

    def loss(self, x):
        with torch.autocast("cuda", enabled=self.use_amp):
            return self.model(x)
""",
        ),
        Example(
            "bfloat16: no scaler on purpose",
            """\
import torch

def train(model, loader, args):
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    scaler = torch.amp.GradScaler("cuda", enabled=args.amp and dtype == torch.float16)
    for x in loader:
        with torch.autocast("cuda", dtype=dtype, enabled=args.amp):
            loss = model(x)
        scaler.scale(loss).backward()
""",
        ),
        Example(
            "only the evaluation differs",
            """\
import torch

def train(model, loader, use_amp, eval_amp):
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
    for x in loader:
        with torch.autocast("cuda", enabled=use_amp):
            scaler.scale(model(x))
    with torch.no_grad(), torch.autocast("cuda", enabled=eval_amp):
        return model(x)
""",
        ),
        Example(
            "the scaler is made and used only with autocast",
            """\
import torch

def train(model, loader, optimizer, use_amp):
    scaler = torch.amp.GradScaler("cuda") if use_amp else None
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", enabled=use_amp):
            loss = model(x)
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
""",
        ),
        Example(
            "a float32 island",
            """\
import torch

def train(model, head, loader, amp):
    scaler = torch.amp.GradScaler("cuda", enabled=amp)
    for x in loader:
        with torch.autocast("cuda", enabled=amp):
            features = model(x)
            with torch.autocast("cuda", enabled=False):
                loss = head(features.float())
        scaler.scale(loss).backward()
""",
        ),
        Example(
            "parameters of different functions",
            """\
import torch

def make_scaler(fast):
    return torch.amp.GradScaler("cuda", enabled=fast)

def loss_of(model, x, amp):
    with torch.autocast("cuda", enabled=amp):
        return model(x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Scalers against the autocast regions of the training."""
        scalers = source.kinds.scaler_constructors()
        regions = [region for region in source.region_stacks.autocasts() if _is_training(source, region)]
        for call in scalers if regions else ():
            if source.has_splat(call) or any(_agree(source, call, region) for region in regions):
                continue
            found = next((item for region in regions if (item := self._mismatch(source, call, region))), None)
            if found is not None:
                message, severity = found
                yield source.finding(self, call, message, severity=severity)

    def _mismatch(self, source: SourceFile, call: ast.Call, region: Region) -> tuple[str, Severity] | None:
        ours, theirs = _switch(source, source.kinds.enabled_by(call)), _switch(source, region.enabled_by)
        if isinstance(ours, ast.expr) and isinstance(theirs, ast.expr):
            if not _comparable(source, ours, theirs) or _on_purpose(source, ours) or _on_purpose(source, theirs):
                return None
            message = (
                f"the scaler is on if {source.segment(ours)}, autocast if {source.segment(theirs)}: "
                "use one condition for both"
            )
            return message, Severity.WARNING
        if region.dtypes != {"float16"} or not region.certain or _is_conditional(source, region.call, call):
            return None
        if ours is False:
            return "GradScaler is switched off while float16 autocast is on: enable both or neither", Severity.WARNING
        if isinstance(ours, ast.expr) and theirs is True and not _on_purpose(source, ours):
            message = (
                f"float16 autocast is always on, the scaler only if {source.segment(ours)}: use one condition for both"
            )
            return message, Severity.WARNING
        if ours is True and isinstance(theirs, ast.expr) and not _is_guarded(source):
            flag = source.segment(theirs)
            return f"the scaler is always on, autocast only if {flag}: give both enabled={flag}", Severity.INFO
        return None


def _is_training(source: SourceFile, region: Region) -> bool:
    if region.enabled is False or source.no_grad(region.call) or "bfloat16" in region.dtypes:
        return False
    function = source.function_of(region.call)
    name = function.name.lower() if function is not None else ""
    return not any(word in name for word in ("eval", "valid", "test", "predict", "infer", "generate", "sample"))


def _switch(source: SourceFile, enabled: ast.expr | None) -> ast.expr | bool:
    """The condition; True or False when it always is."""
    if enabled is None:
        return True
    value = source.constant(enabled)
    return enabled if value is UNKNOWN else bool(value)


def _agree(source: SourceFile, call: ast.Call, region: Region) -> bool:
    ours, theirs = _switch(source, source.kinds.enabled_by(call)), _switch(source, region.enabled_by)
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    a, b = _forms(source, ours), _forms(source, theirs)
    # `amp and cuda` beside `amp` narrows the same switch down
    return bool(a & b) or any(x in y or y in x for x in a for y in b)


def _forms(source: SourceFile, condition: ast.expr) -> frozenset[str]:
    """Spellings of a condition: its text, that of what its name stands for, and its last name without "use_"."""
    words = Words(source.scopes, source.names, source.function_of(condition))
    expressions = [condition, words.unfold(condition), *source.values(condition)]
    forms = set()
    for item in expressions:
        text = words.text(item)
        forms |= {text, _AFFIXES.sub("", text.rpartition(".")[2].lower())}
    return frozenset(forms - {""})


def _on_purpose(source: SourceFile, condition: ast.expr) -> bool:
    return any(_ON_PURPOSE.search(form) for form in _forms(source, condition))


def _comparable(source: SourceFile, ours: ast.expr, theirs: ast.expr) -> bool:
    """Whether two conditions are of one function or one object, so that different words mean different values."""
    if source.function_of(ours) is source.function_of(theirs):
        return True
    roots = {_root(ours), _root(theirs)}
    return len(roots) == 1 and roots != {""}


def _root(node: ast.expr) -> str:
    """The object of an attribute: "self.args" of ``self.args.amp``."""
    return ast.dump(node.value) if isinstance(node, ast.Attribute) else ""


def _is_conditional(source: SourceFile, region: ast.expr, scaler: ast.Call) -> bool:
    """Whether either stands under a condition of its own: in an if, as one arm of a choice, or behind a name."""
    named = isinstance(region, ast.Call) and not any("autocast" in name for name in source.qualified(region.func))
    return named or any(_gates(source, node) for node in (region, scaler))


def _gates(source: SourceFile, node: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, FUNCTIONS):
            break
        if isinstance(ancestor, ast.If | ast.IfExp | ast.Match):
            found.append(ancestor)
    return found


def _is_guarded(source: SourceFile) -> bool:
    """Whether the file uses scalers under conditions: then a scaler that is always made need not always be used."""
    used = [event.node for event in source.events if event.kind in ("scale", "step")]
    return any(_gates(source, node) for node in used)
