"""AMP215: one autocast region runs the same weights first without, then with gradients."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._models import calls_in, model_of_call
from amptune_rules.source._reach import callee

_EFFECT = "its cached half weights have no gradient; split the region"


class AutocastCacheNoGrad(SourceRule):
    """A model runs under no_grad and then with gradients inside one autocast region.

    ## What it does
    Flags a model call with gradients that follows a call of the same model under `torch.no_grad()` in the same autocast
    region.

    ## Why is this bad
    Autocast keeps the half precision copies of weights until the region ends. Copies that were made under no_grad have
    no gradient history, and before torch 2.11 the later call takes them from the cache: those weights get no gradient,
    and do not train, without any error. (Torch 2.11 makes the copies with history.)

    ## Example
    ```python
    import torch
    with torch.autocast("cuda"):
        with torch.no_grad():
            target = model(x_old)
        loss = loss_fn(model(x), target)
    loss.backward()
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda"), torch.no_grad():
        target = model(x_old)
    with torch.autocast("cuda"):
        loss = loss_fn(model(x), target)
    loss.backward()
    ```

    ## Fix safety
    No fix: the region has to be split, or made with `cache_enabled=False`.

    ## References
    - https://github.com/pytorch/pytorch/issues/65766
    - https://github.com/pytorch/pytorch/issues/112583
    - https://github.com/pytorch/pytorch/pull/165068
    """

    code = "AMP215"
    name = "autocast-cache-no-grad"
    severity = Severity.WARNING
    keywords = (b"autocast",)
    requires = (b"autocast",)

    INVALID = (
        Example(
            "target first",
            """\
import torch

def loss_of(model, x, x_old, criterion):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        with torch.no_grad():
            target = model(x_old)
        return criterion(model(x), target)  # <- AMP215@26
""",
        ),
        Example(
            "recycling in a loop",
            """\
import torch

class Trainer:
    def loss(self, x, steps):
        with torch.autocast("cuda"):
            for step in range(steps):
                with torch.set_grad_enabled(False):
                    x = self.net(x)
            return self.net(x).sum()  # <- AMP215@20
""",
        ),
        Example(
            "helper without gradients",
            """\
import torch

class Trainer:
    @torch.no_grad()
    def labels(self, x):
        return self.model(x).argmax(-1)

    def loss(self, x, criterion):
        with torch.autocast("cuda"):
            labels = self.labels(x)
            return criterion(self.model(x), labels)  # <- AMP215@30
""",
        ),
    )
    VALID = (
        Example(
            "another model",
            """\
import torch

def loss_of(student, teacher, x, criterion):
    with torch.autocast("cuda"):
        with torch.no_grad():
            target = teacher(x)
        return criterion(student(x), target)
""",
        ),
        Example(
            "two regions",
            """\
import torch

def loss_of(model, x, criterion):
    with torch.autocast("cuda"), torch.no_grad():
        target = model(x)
    with torch.autocast("cuda"):
        return criterion(model(x), target)
""",
        ),
        Example(
            "no cache, or cleared",
            """\
import torch

def loss_of(model, x, criterion):
    with torch.autocast("cuda", cache_enabled=False):
        with torch.no_grad():
            target = model(x)
        return criterion(model(x), target)

def cleared(model, x, criterion):
    with torch.autocast("cuda"):
        with torch.no_grad():
            target = model(x)
        torch.clear_autocast_cache()
        return criterion(model(x), target)
""",
        ),
        Example(
            "gradients first, and only once",
            """\
import torch

def loss_of(model, x, criterion):
    with torch.autocast("cuda"):
        output = model(x)
        with torch.no_grad():
            check = model(x)
            model.eval()
        model.train()
        return criterion(output, check)
""",
        ),
        Example(
            "either one or the other",
            """\
import torch

def run(model, x, training):
    with torch.autocast("cuda"):
        if training:
            return model(x)
        else:
            with torch.no_grad():
                return model(x)
""",
        ),
        Example(
            "tried again with gradients when it failed without",
            """\
import torch

def evaluate(model, loader):
    with torch.autocast("cuda", dtype=torch.float16):
        for x in loader:
            try:
                with torch.no_grad():
                    out = model(x)
            except RuntimeError:
                out = model(x)
            print(out.loss.item())
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Regions with model calls of both kinds."""
        for node in source.nodes(ast.With):
            for item in node.items:
                region = source.region_stacks.as_region(item.context_expr)
                if self._caches(source, region, node.body) and not source.no_grad(node):
                    yield from self._region(source, node.body)
        for function in source.nodes(ast.FunctionDef):
            for decorator in function.decorator_list:
                if self._caches(source, source.region_stacks.as_region(decorator), function.body):
                    yield from self._region(source, function.body)

    def _caches(self, source: SourceFile, region: Region, body: list[ast.stmt]) -> bool:
        if region.kind != "autocast" or region.enabled is False or source.no_grad(body[0]) or _clears(source, body):
            return False
        call = region.call
        cache = source.argument(call, "cache_enabled") if isinstance(call, ast.Call) else None
        return cache is None or source.constant(cache) is not False

    def _region(self, source: SourceFile, body: list[ast.stmt]) -> Iterator[Finding]:
        without: list[tuple[str, ast.Call]] = []
        for call in sorted(calls_in(body), key=lambda call: (call.end_lineno or 0, call.end_col_offset or 0)):
            if _is_off(source, call):
                continue
            without += [(text, call) for text in _models_without_grad(source, call)]
            model = model_of_call(source, call)
            if model is None or source.no_grad(call):
                continue
            text = source.segment(model)
            if _switches_in_loop(source, call, body):
                message = f"{text} runs with and without gradients in one autocast region: before torch 2.11 {_EFFECT}"
                yield source.finding(self, call, message)
                return
            earlier = [other for name, other in without if name == text and not _excludes(source, other, call)]
            if earlier:
                message = (
                    f"{text} ran under no_grad in line {earlier[0].lineno} of the same autocast region: "
                    f"before torch 2.11 {_EFFECT}"
                )
                yield source.finding(self, call, message)
                return


def _clears(source: SourceFile, body: list[ast.stmt]) -> bool:
    return any(
        isinstance(call.func, ast.Attribute | ast.Name) and "torch.clear_autocast_cache" in source.qualified(call.func)
        for call in calls_in(body)
    )


def _is_off(source: SourceFile, call: ast.Call) -> bool:
    region = source.autocast(call)
    return region is not None and region.enabled is False


def _switches_in_loop(source: SourceFile, call: ast.Call, body: list[ast.stmt]) -> bool:
    """Whether the call is in a loop of the region, under a ``set_grad_enabled`` that changes from turn to turn."""
    loops = [loop for loop in source.loops_of(call) if any(source.index.is_inside(loop, item) for item in body)]
    return bool(loops) and any(
        region.kind == "other"
        and isinstance(region.call, ast.Call)
        and "torch.set_grad_enabled" in source.qualified(region.call.func)
        and isinstance(region.call.args[0] if region.call.args else None, ast.Compare)
        and source.index.is_inside(region.node, loops[0])
        for region in source.regions(call)
    )


def _models_without_grad(source: SourceFile, call: ast.Call) -> list[str]:
    """Models that the call runs under no_grad, also in a method of this file that it enters."""
    if source.no_grad(call):
        model = model_of_call(source, call)
        return [source.segment(model)] if model is not None else []
    function = callee(source, call)
    found = []
    for inner in calls_in(function.body) if function is not None else ():
        model = model_of_call(source, inner)
        if model is not None and source.no_grad(inner) and source.segment(model).startswith("self."):
            found.append(source.segment(model))
    return found


def _excludes(source: SourceFile, first: ast.AST, second: ast.AST) -> bool:
    """Whether the two are in different branches, or the first leaves the function: then only one of them runs."""
    branches = {id(node): node for node in source.ancestors(first) if isinstance(node, ast.If | ast.Try)}
    child: ast.AST = second
    for ancestor in source.ancestors(second):
        if id(ancestor) in branches and isinstance(ancestor, ast.If):
            in_else = child in ancestor.orelse
            if in_else is any(source.index.is_inside(first, item) for item in ancestor.body):
                return True
        if id(ancestor) in branches and isinstance(ancestor, ast.Try) and child in ancestor.handlers:
            return True  # the first has failed
        child = ancestor
    return isinstance(source.statement_of(first), ast.Return)
