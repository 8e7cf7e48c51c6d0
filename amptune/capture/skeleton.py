"""Writing the target functions for a model: ``make_model``, ``make_batch`` and ``loss_fn`` as source."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from amptune.capture.fakes import FakeRules
from amptune.capture.forward import repeatable
from amptune.capture.inputs import InputSpec
from amptune.capture.prepare import prepare_fake
from amptune.capture.target import Target, loss_inside
from amptune.capture.usercode import UserCodeError, user_code
from amptune.errors import TargetError

FUNCTIONS = ("make_model", "make_batch", "loss_fn")
HEADER = "# amptune: how to build, feed and judge the model"


@dataclasses.dataclass(frozen=True)
class Output:
    """What the model returns for the batch: where its first floating tensor is, its shape, and whether it has a loss.

    ``access`` is an expression such as ``output["logits"]``; empty where there is no such tensor.
    """

    access: str = ""
    shape: tuple[int, ...] = ()
    has_loss: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether it looks like (batch, classes) or (batch, length, classes); one number a sample is a regression."""
        return 2 <= len(self.shape) <= 3 and self.shape[-1] > 1


def functions_source(target: Target, source: str) -> str:
    """The functions that ``source`` lacks, ready to be appended to it.

    Args:
        target: the model, with inputs that were given or guessed.
        source: text of the file; empty for a model of a package.

    Raises:
        TargetError: all of them exist.
    """
    defined = _defined(source)
    missing = [name for name in FUNCTIONS if name not in defined]
    if not missing:
        raise TargetError(
            f"{', '.join(FUNCTIONS)} exist already", hint="edit them, or remove what is to be written anew"
        )
    output = _output(target)
    writers = {
        "make_model": lambda: _model_lines(target),
        "make_batch": lambda: _batch_lines(target, output),
        "loss_fn": lambda: _loss_lines(output, 'batch["targets"]' if _is_named(target.inputs) else "batch[1]"),
    }
    blocks = [writers[name]() for name in missing]
    head = [HEADER, *_imports(target, source)]
    return "\n".join(["", "", *head, *(line for block in blocks if block for line in ["", "", *block])]) + "\n"


def _defined(source: str) -> set[str]:
    """Names that a file binds at its top level."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {name.id for name in node.targets if isinstance(name, ast.Name)}
    return names


def _imports(target: Target, source: str) -> list[str]:
    lines = [] if "torch" in _defined(source) else ["import torch"]
    if target.path is None:
        lines.append(f"from {target.module.__name__} import {target.name}")
        lines += [f"from {cls.__module__} import {cls.__name__}" for cls in target.config_classes]
    return lines


def _output(target: Target) -> Output:
    """Run the model once without memory, to see what it returns."""
    prepared, mode = prepare_fake(target, train=True, notes=[])
    try:
        with user_code(), repeatable(), torch.no_grad(), FakeRules(mode):
            result = target.call(prepared.model, prepared.batch)
    except UserCodeError as error:
        if not type(error.cause).__module__.startswith("torch._subclasses"):
            raise TargetError(f"the model does not run: {error}", hint="give its inputs with --input SHAPE") from error
        return Output()
    access, tensor = _first_floating(result)
    return Output(access, tuple(tensor.shape) if tensor is not None else (), loss_inside(result) is not None)


def _first_floating(result: Any) -> tuple[str, torch.Tensor | None]:
    """The first floating tensor of an output, and how to write it; looks one level deep."""
    parts: list[tuple[str, Any]] = [("output", result)]
    if isinstance(result, Mapping):
        parts += [(f"output[{key!r}]", value) for key, value in result.items()]
    elif dataclasses.is_dataclass(result):
        parts += [(f"output.{field.name}", getattr(result, field.name)) for field in dataclasses.fields(result)]
    elif isinstance(result, tuple | list):
        parts += [(f"output[{index}]", value) for index, value in enumerate(result)]
    for access, value in parts:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            return access, value
    return "", None


def _is_named(specs: Sequence[InputSpec]) -> bool:
    return bool(specs) and all(spec.name for spec in specs)


def _model_lines(target: Target) -> list[str]:
    return ["def make_model():", f"    return {target.construction}"]


def _batch_lines(target: Target, output: Output) -> list[str]:
    lines = ["def make_batch():", "    # Random numbers: put a batch of your data here."]
    targets = _targets(output)
    if _is_named(target.inputs):
        entries = [f"{spec.name}={_tensor(spec)}" for spec in target.inputs] + (
            [f"targets={targets}"] if targets else []
        )
        return [*lines, "    return dict(", *(f"        {entry}," for entry in entries), "    )"]
    lines.append(f"    inputs = {', '.join(_tensor(spec) for spec in target.inputs)}")
    return [*lines, f"    targets = {targets or None}", "    return inputs, targets"]


def _tensor(spec: InputSpec) -> str:
    default = torch.float32 if spec.dtype.is_floating_point else torch.int64
    dtype = "" if spec.dtype is default else f", dtype={spec.dtype}"
    if spec.dtype.is_floating_point:
        return f"torch.randn({', '.join(map(str, spec.shape))}{dtype})"
    return f"torch.randint({spec.high or 2}, {spec.shape}{dtype})"


def _targets(output: Output) -> str:
    """Random targets that fit the output; empty where the model has its own loss, or nothing is known."""
    if output.has_loss or not output.access:
        return ""
    if output.has_classes:
        return f"torch.randint({output.shape[-1]}, {output.shape[:-1]})"
    return f"torch.randn({', '.join(map(str, output.shape))})"


def _loss_lines(output: Output, targets: str) -> list[str]:
    if output.has_loss:
        return []
    if not output.access:
        return ["# loss_fn(output, batch) is missing: write one that returns a scalar tensor."]
    given, functional = output.access, "torch.nn.functional"
    call = f"{functional}.mse_loss({given}, {targets})"
    if output.has_classes:
        flat = len(output.shape) == 3
        arguments = f"{given}.flatten(0, 1), {targets}.flatten()" if flat else f"{given}, {targets}"
        call = f"{functional}.cross_entropy({arguments})"
    return [
        "def loss_fn(output, batch):",
        "    # A guess from the shape of the output: put your loss here.",
        f"    return {call}",
    ]
