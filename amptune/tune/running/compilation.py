"""Compile mode: which parts of a model run under torch.compile, and how that is taken back.

A search compiles repeated blocks alone: those alike share one compiled code, so a trial waits seconds for the compiler
and not a minute. Where hardly any are alike its trials run in eager mode. The finalists are compiled as they will run:
the recipe whole, a plan whole or by its blocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch._functorch.config
from torch import nn

from amptune.capture.usercode import shown_path
from amptune.core.plan import INDUCTOR
from amptune.runtime import REGIONS_APART, base_class, compile_part

BACKEND = INDUCTOR
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_GOT = re.compile(r"got (\w+)\(['\"](.*?)['\"]\)", re.DOTALL)
_RAISED = re.compile(r"raised:\n(\w+): (.*)")
_USER_CODE = re.compile(r'File "([^"]+)", line (\d+)')
SHARING = 2
"""Of many layers to compile, blocks have at most one in so many of the model's, or the whole model is compiled."""
DEAR = 24
"""Layers to compile in a trial from which on compiling takes far longer than all else in it: on an H200 one takes about
a second, forward and backward (ResNet-50's 54: 50 s, BERT's 6 in each of its blocks and two beside them: 7 s)."""
RECOMPILE_LIMIT = 64
"""Versions that one piece of code may be compiled in. Blocks that differ in formats or sizes have a code each, see
``runtime.compile_part``: what is left are the kinds of tensors and numbers that one block is called with."""


_of_the_user: dict[str, Any] = {}
"""What ``compile_apart`` has changed for losses, as it was: models are compiled as they are without it."""


@dataclasses.dataclass(frozen=True)
class Compilation:
    """How the model is compiled.

    Attributes:
        backend: of torch.compile.
        scope: ``blocks`` for the repeated blocks alone (the whole model where it has none), or ``whole``.
    """

    backend: str = BACKEND
    scope: Literal["blocks", "whole"] = "blocks"


def parts_to_compile(model: nn.Module, scope: str) -> list[nn.Module]:
    """The modules that are compiled, each with its own call of torch.compile.

    Beside repeated blocks also what multiplies outside them: the head of a language model in eager mode would cost a
    trial more than all that the search is about, as the compiler pads its vocabulary and fuses its casts. Where blocks
    take as long as the whole model, as a ResNet's, of which hardly two are alike, that one: the user compiles it.
    """
    blocks = repeated_blocks(model) if scope == "blocks" else []
    if not blocks:
        return [model]
    parts = [*blocks, *_outside(model, blocks)]
    distinct = num_distinct(parts)
    return parts if distinct <= max(DEAR, _num_products([model]) / SHARING) else [model]


def is_dear(model: nn.Module) -> bool:
    """Whether compiling what a trial compiles would take far longer than measuring it."""
    return num_distinct(parts_to_compile(model, "blocks")) > DEAR


def num_distinct(parts: Iterable[nn.Module]) -> int:
    """Layers that multiply in these modules, those of alike modules once."""
    return _num_products({_kind(part): part for part in parts}.values())


def _kind(part: nn.Module) -> Hashable:
    """Equal for modules that can share what is compiled, as far as classes and sizes tell."""
    classes = tuple((path, base_class(type(module))) for path, module in part.named_modules())
    return classes, tuple(parameter.shape for parameter in part.parameters())


def _num_products(modules: Iterable[nn.Module]) -> int:
    """Layers in these modules that multiply by a matrix, a kernel of a convolution among them."""
    return sum(_has_matrix(layer) for module in modules for layer in module.modules())


def _outside(module: nn.Module, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The outermost modules that hold none of the blocks and multiply by a matrix."""
    found: list[nn.Module] = []
    for child in module.children():
        if any(child is block for block in blocks):
            continue
        is_called = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if not is_called or any(part is block for part in child.modules() for block in blocks):
            found += _outside(child, blocks)
        elif _multiplies(child):
            found.append(child)
    return list({id(part): part for part in found}.values())


def _multiplies(module: nn.Module) -> bool:
    """Whether a module holds a matrix that is not a table to look up in."""
    return any(_has_matrix(part, most=2) for part in module.modules())


def _has_matrix(layer: nn.Module, most: int = 5) -> bool:
    """Whether the layer itself holds a parameter of two to ``most`` dimensions that is not a table to look up in."""
    is_table = isinstance(layer, nn.Embedding | nn.EmbeddingBag)
    return not is_table and any(2 <= parameter.dim() <= most for parameter in layer.parameters(recurse=False))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules with children that stand beside others of their class in a ModuleList or Sequential.

    Where no two of them have equal sizes, as the stages of a Swin, those within them, if there are any.
    """
    alike = _alike(model) if isinstance(model, nn.ModuleList | nn.Sequential) else []
    rest = [part for part in model.children() if not any(part is block for block in alike)]
    blocks = [*alike, *(block for part in rest for block in repeated_blocks(part))]
    return list({id(block): block for block in blocks}.values())


def _alike(container: nn.Module) -> list[nn.Module]:
    """Children of the container, themselves with children, whose class occurs at least twice in it."""
    classes = [base_class(type(child)) for child in container.children()]
    alike = [
        child
        for child, cls in zip(container.children(), classes, strict=True)
        if classes.count(cls) > 1 and cls not in _CONTAINERS and next(child.children(), None) is not None
    ]
    if len({_kind(child) for child in alike}) == len(alike):
        return [block for child in alike for block in repeated_blocks(child)] or alike
    return alike


@contextlib.contextmanager
def own_code_of_autocast(within: bool) -> Iterator[None]:
    """Compile what runs in an autocast region anew, where torch's cache on disk would mix up the regions' dtypes.

    Its key has the dtype of the region since 2.13. Before, a model compiled under autocast in BF16 could be given that
    code when it was compiled under FP16.
    """
    if not within or REGIONS_APART:
        yield
        return
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield


@contextlib.contextmanager
def compiled(model: nn.Module, compilation: Compilation | None) -> Iterator[None]:
    """Run the parts under torch.compile while the block runs. Nothing is compiled before the first call."""
    if compilation is None:
        yield
        return
    parts = parts_to_compile(model, compilation.scope)
    for part in parts:
        if part is model:
            part._compiled_call_impl = torch.compile(_caller(part), backend=compilation.backend)
        else:
            compile_part(part, compilation.backend)
    try:
        # A graph that is compiled too often would go on in eager mode without a word: that is a failed trial.
        with torch._dynamo.config.patch(
            recompile_limit=RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True, **_of_the_user
        ):
            yield
    finally:
        for part in parts:
            part.__dict__.pop("_compiled_call_impl", None)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Run code that the user's own code compiles as it is written: compiled code hears no hooks that come later."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and to import it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _caller(module: nn.Module) -> Callable[..., Any]:
    """What to compile for one module.

    ``module.compile()`` does nothing for a class of torch.nn, whose code the compiler does not enter from the outside:
    a function of ours makes it.
    """
    if not base_class(type(module)).__module__.startswith("torch."):
        return module._call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    return call


def forget_compiled() -> None:
    """Drop all compiled code: what one trial compiled must not stand in the way of the next."""
    torch._dynamo.reset()


def compile_apart() -> None:
    """Compile a loss anew for each kind of output, and keep what was compiled.

    By itself torch would meet the second kind with a kernel for sizes and strides that change, and in the end run it
    eagerly without a word: neither is what the user's own process does, which sees one kind.
    """
    _of_the_user.setdefault("automatic_dynamic_shapes", torch._dynamo.config.automatic_dynamic_shapes)
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)


def cause_in_compiler(error: Exception) -> str:
    """What made the compiler give up, as ``RuntimeError: text``, with the line of the user's code where it says one.

    Empty for an error of another kind. The first line of the compiler's own text only says what it was about to do.
    """
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ""
    text = str(error)
    found = _GOT.search(text) or _RAISED.search(text)
    places = _USER_CODE.findall(text.partition("from user code:")[2])
    place = f" ({shown_path(places[-1][0])}:{places[-1][1]})" if places else ""
    return f"under torch.compile, {found[1]}: {found[2]}{place}" if found else ""
