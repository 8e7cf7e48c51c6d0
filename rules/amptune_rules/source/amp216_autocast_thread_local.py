"""AMP216: autocast is entered in one thread, and the work runs in another."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amptune.core.finding import Finding, Severity
from amptune.core.ops import Autocast
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import FUNCTIONS, FunctionNode
from amptune.lint.source import SourceFile
from amptune_rules.source._models import autocast_class, calls_in, is_model, model_of_call

_THREADS = ("threading.Thread", "threading.Timer")
_TO_THREAD = ("asyncio.to_thread", "torch.jit.fork", "torch.futures.fork")
_POOLS = ("concurrent.futures.ThreadPoolExecutor", "multiprocessing.pool.ThreadPool", "multiprocessing.dummy.Pool")
_POOL_METHODS = {"submit": 0, "map": 0, "imap": 0, "imap_unordered": 0, "starmap": 0, "apply": 0, "apply_async": 0,
                 "run_in_executor": 1}  # fmt: skip


class AutocastThreadLocal(SourceRule):
    """Work is given to another thread inside an autocast region.

    ## What it does
    Flags threads and thread pool tasks that are started inside an autocast region and run a model or matrix products,
    in a function that does not enter autocast itself.

    ## Why is this bad
    The autocast state belongs to a thread. A new thread begins with autocast off, so its work runs in float32,
    silently: it is slower, and results that are combined with those of the main thread have other dtypes.

    ## Example
    ```python
    import threading
    import torch
    with torch.autocast("cuda"):
        worker = threading.Thread(target=model, args=(x,))
        worker.start()
    ```

    ## Use instead
    ```python
    import threading
    import torch
    def run(x):
        with torch.autocast("cuda"):
            model(x)
    worker = threading.Thread(target=run, args=(x,))
    worker.start()
    ```

    ## Fix safety
    No fix: the region has to move into the function that the thread runs.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    """

    code = "AMP216"
    name = "autocast-thread-local"
    severity = Severity.WARNING
    keywords = (b"autocast",)
    requires = (b"autocast",)

    INVALID = (
        Example(
            "thread with a local function",
            """\
import threading
import torch

def run(model, parts):
    def worker(part):
        results.append(model(part))

    results = []
    with torch.autocast("cuda", dtype=torch.bfloat16):
        threads = [threading.Thread(target=worker, args=(part,)) for part in parts]  # <- AMP216@20
        for thread in threads:
            thread.start()
    return results
""",
        ),
        Example(
            "executor",
            """\
from concurrent.futures import ThreadPoolExecutor
import torch

class Ensemble:
    def _one(self, net, x):
        return net(x) @ self.mix

    def run(self, x):
        with torch.autocast("cuda"), ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(self._one, net, x) for net in self.nets]  # <- AMP216@24
            return [future.result() for future in futures]
""",
        ),
        Example(
            "models handed over themselves",
            """\
from concurrent.futures import ThreadPoolExecutor
import torch

def run(model, batches):
    executor = ThreadPoolExecutor()
    with torch.autocast("cuda"):
        return list(executor.map(model, batches))  # <- AMP216@21
""",
        ),
    )
    VALID = (
        Example(
            "the function enters autocast itself",
            """\
import threading
import torch

def worker(model, part):
    with torch.autocast("cuda"):
        model(part)

def run(model, parts):
    with torch.autocast("cuda"):
        for part in parts:
            threading.Thread(target=worker, args=(model, part)).start()
""",
        ),
        Example(
            "reading and writing files",
            """\
from concurrent.futures import ThreadPoolExecutor
import torch

def save(path, tensor):
    torch.save(tensor.cpu(), path)

def run(model, loader, pool: ThreadPoolExecutor):
    with torch.autocast("cuda"):
        for x in loader:
            pool.submit(save, "out.pt", model(x))
""",
        ),
        Example(
            "started outside the region",
            """\
import threading
import torch

def train(model, loader):
    with torch.autocast("cuda"):
        for x in loader:
            model(x)

def start(model, loader):
    threading.Thread(target=train, args=(model, loader)).start()
""",
        ),
        Example(
            "processes and other map methods",
            """\
import torch

def run(model, dataset, frame, client):
    with torch.autocast("cuda"):
        frame.map(model)
        client.submit(model, dataset)
""",
        ),
        Example(
            "region that is off",
            """\
import threading
import torch

def run(model, x):
    with torch.autocast("cuda", enabled=False):
        threading.Thread(target=model, args=(x,)).start()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Threads and tasks that are made in a region."""
        for call in source.nodes(ast.Call):
            task = _task(source, call) or _run_of_subclass(source, call)
            if task is None or not source.in_autocast(call):
                continue
            what = _work(source, task)
            if what is not None:
                message = f"{what} runs in another thread, where autocast is off: enter autocast in that thread"
                yield source.finding(self, call, message)


def _task(source: SourceFile, call: ast.Call) -> ast.expr | None:
    """What the call runs in another thread."""
    names = source.qualified(call.func)
    if not set(names).isdisjoint(_THREADS):
        return source.argument(call, "target" if "Timer" not in names[0] else "function", 1)
    if not set(names).isdisjoint(_TO_THREAD):
        return source.argument(call, "func", 0)
    func = call.func
    if not isinstance(func, ast.Attribute) or func.attr not in _POOL_METHODS:
        return None
    position = _POOL_METHODS[func.attr]
    if func.attr == "run_in_executor" or _is_pool(source, func.value):
        return source.argument(call, "func", position)
    return None


def _run_of_subclass(source: SourceFile, call: ast.Call) -> FunctionNode | None:
    """The ``run`` of a Thread subclass of this file that the call makes an object of."""
    for binding in source.bindings(call.func) if isinstance(call.func, ast.Name) else ():
        cls = binding.node
        if isinstance(cls, ast.ClassDef) and any(
            name in _THREADS for base in cls.bases for name in source.qualified(base)
        ):
            return next((item for item in cls.body if isinstance(item, ast.FunctionDef) and item.name == "run"), None)
    return None


def _is_pool(source: SourceFile, node: ast.expr) -> bool:
    """Whether the object is a pool of threads, by how it is made or annotated."""
    makers = [leaf for leaf in source.values(node) if isinstance(leaf, ast.Call)]
    for binding in source.bindings(node):
        if binding.kind == "with" and isinstance(binding.value, ast.Call):
            makers.append(binding.value)
        annotation = binding.node.annotation if isinstance(binding.node, ast.arg) else None
        if not set(source.qualified(annotation)).isdisjoint(_POOLS):
            return True
    return any(not set(source.qualified(maker.func)).isdisjoint(_POOLS) for maker in makers)


def _work(source: SourceFile, task: ast.expr | FunctionNode) -> str | None:
    """The task's name when it runs a network; None when it does not, or enters autocast by itself."""
    if isinstance(task, ast.Lambda):
        return "the lambda" if _computes(source, [task.body]) else None
    if isinstance(task, ast.expr) and is_model(source, task):
        return source.segment(task)
    function = source.definition(task) if isinstance(task, ast.Name | ast.Attribute) else task
    if not isinstance(function, FUNCTIONS) or _enters_autocast(source, function):
        return None
    return function.name if _computes(source, function.body) else None


def _enters_autocast(source: SourceFile, function: FunctionNode) -> bool:
    regions = source.region_stacks
    if any(regions.as_region(item).kind == "autocast" for item in function.decorator_list):
        return True
    items = [item for node in source.nodes(ast.With) for item in node.items if source.index.is_inside(node, function)]
    return any(regions.as_region(item.context_expr).kind == "autocast" for item in items)


def _computes(source: SourceFile, body: Sequence[ast.AST]) -> bool:
    """Whether the code runs a model or an op that autocast casts for."""
    return any(
        model_of_call(source, call) is not None or autocast_class(source, call) is Autocast.LOWER
        for call in calls_in(body)
    )
