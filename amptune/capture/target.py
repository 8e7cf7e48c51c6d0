"""The target: how a user hands over a model, its batch and its loss."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from amptune.capture.built import construction_noted
from amptune.capture.inputs import InputSpec
from amptune.capture.usercode import UserCodeError, user_code
from amptune.errors import CaptureError, TargetError

Kind = Literal["functions", "class", "callable"]
STAND_IN = (
    "there is no loss to train by: the mean of the squares of the outputs stands in for it, "
    "so what is said about quality and gradients means little"
)
COMPILED = "the model comes under torch.compile, and is looked at without it; --compile measures under it"
PARTS_COMPILED = (
    "parts of the model come under torch.compile, and are looked at without it; --compile measures under it"
)


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """What the command line got; picklable, so that a worker process loads the same target.

    Attributes:
        text: ``model.py``, ``model.py:Name`` or ``package.module:callable``.
        arguments: constructor arguments as written, ``{"d_model": "512"}``.
        inputs: input descriptions as written, ``("16x1024:int64:50257",)``.
        state: file with the weights to start from.
        batch: file with the batch to use for everything.
        beside: file of the user's beside which ``text`` is to lie; it runs as it will there.
    """

    text: str
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    inputs: tuple[str, ...] = ()
    state: str | None = None
    batch: str | None = None
    beside: str | None = None


@dataclasses.dataclass
class Target:
    """A model that can be built, fed and judged.

    Attributes:
        spec: what it was loaded from.
        path: the user's file; None for a model from a package.
        module: the loaded module.
        kind: whether functions, a class or a named callable supply the model.
        name: the model class, or the function that makes the model.
        source_sha256: hash of the file's text; empty for a package.
        notes: what was guessed or assumed, for the user to read.
        has_loss: whether the loss is the user's (``loss_fn`` or ``output.loss``), not a stand-in. Without a
            ``loss_fn`` it is known only after the first call of :meth:`loss`.
        make_optimizer, train_batches, evaluate: the user's optional functions.
        construction: the call that builds the model, as source.
        config_classes: classes of configuration objects in that call.
        inputs: what the batch is made of, where it was given or guessed.
    """

    spec: TargetSpec
    path: Path | None
    module: ModuleType
    kind: Kind
    name: str
    source_sha256: str
    build: Callable[[], Any]
    feed: Callable[[], Any]
    runner: Callable[[nn.Module, Any], Any] | None = None
    loss_fn: Callable[[Any, Any], Any] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    has_loss: bool = False
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    train_batches: Callable[[], Iterator[Any]] | None = None
    evaluate: Callable[[nn.Module], float] | None = None
    construction: str = ""
    config_classes: tuple[type, ...] = ()
    inputs: tuple[InputSpec, ...] = ()

    def make_model(self) -> nn.Module:
        """A new model.

        Raises:
            TargetError: the user's code failed, with its line, or it gave something that is no ``nn.Module``.
        """
        try:
            with user_code(), construction_noted():
                model = self.build()
        except UserCodeError as error:
            raise _failed(f"{self.name}() failed", error) from error
        if not isinstance(model, nn.Module):
            raise TargetError(
                f"{self.name}() returned {_kind_of(model)}, not a torch.nn.Module", hint="return the model itself"
            )
        plain = without_compilation(model)
        has_compiled_parts = take_compilation_off(plain)
        note = COMPILED if plain is not model else PARTS_COMPILED if has_compiled_parts else ""
        if note and note not in self.notes:
            self.notes.append(note)
        return plain

    def make_batch(self) -> Any:
        """A new batch, as ``call`` and ``loss`` take it.

        Raises:
            TargetError: the user's code failed, with its line, or it gave None or no tensor at all.
        """
        try:
            with user_code():
                batch = self.feed()
        except UserCodeError as error:
            raise _failed("make_batch() failed", error) from error
        if not any(True for _ in batch_tensors(batch)):
            raise TargetError(
                f"make_batch() returned {_kind_of(batch)}, which holds no tensor",
                hint="return (inputs, targets), or a dict with the names of forward's parameters"
                + ("; torch.from_numpy makes a tensor of an array" if _holds_array(batch) else ""),
            )
        if all(tensor.numel() == 0 for tensor in batch_tensors(batch)):
            raise TargetError(
                "make_batch() returned a batch without a sample: all its tensors are empty",
                hint="return as many samples as a training step has",
            )
        return batch

    def call(self, model: nn.Module, batch: Any) -> Any:
        """The model's output: ``run(model, batch)``, or a tensor as ``model(x)``, a tuple as ``model(*x)``, a dict as
        ``model(**x)`` with the keys that forward accepts. What the user's code raises is raised as it is."""
        if self.runner is not None:
            return self.runner(model, batch)
        args, kwargs = call_arguments(model, batch)
        return model(*args, **kwargs)

    def loss(self, output: Any, batch: Any) -> torch.Tensor:
        """The scalar to train on: ``loss_fn(output, batch)``, else the loss inside the output, else a stand-in.

        Raises:
            CaptureError: the result is no floating scalar tensor.
        """
        if self.loss_fn is not None:
            return checked_scalar(self.loss_fn(output, batch), "loss_fn(output, batch)")
        own = loss_inside(output)
        if own is not None:
            self.has_loss = True
            return checked_scalar(own, "the model's own loss")
        if STAND_IN not in self.notes:
            self.notes.append(STAND_IN)
        return stand_in_loss(output)


def without_compilation(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile(model)`` wraps; the model itself where it is not wrapped."""
    # By name: to import the class takes seconds.
    inner = model._modules.get("_orig_mod") if type(model).__name__ == "OptimizedModule" else None
    return model if inner is None else inner


def take_compilation_off(model: nn.Module) -> bool:
    """Take torch.compile off the parts of a model, in place; whether there was one under it.

    Code that was compiled hears no hooks that come later, and a search would compile it anew for each plan, up to a
    limit beyond which torch runs it without compilation.
    """
    found = False
    for module in list(model.modules()):
        found = module.__dict__.pop("_compiled_call_impl", None) is not None or found
        for name, child in module._modules.items():
            if child is not None and (plain := without_compilation(child)) is not child:
                module._modules[name], found = plain, True
    return found


def call_arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How ``batch`` goes into ``model``: positional and keyword arguments."""
    signature = inspect.signature(model.forward)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        args, kwargs = _spread(signature, batch[0])
        if not _binds(signature, args, kwargs) and _binds(signature, tuple(batch), {}):
            return tuple(batch), {}  # two inputs and no targets
        return args, kwargs
    return _spread(signature, batch)


def _spread(signature: inspect.Signature, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), _accepted(signature, inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _accepted(signature: inspect.Signature, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return dict(inputs)
    accepted = {name: value for name, value in inputs.items() if name in signature.parameters}
    if inputs and not accepted:
        keys, names = ", ".join(map(str, inputs)), ", ".join(signature.parameters)
        raise CaptureError(
            f"the batch is a dict with {keys}, but forward takes {names}",
            hint="name the keys as forward's parameters",
        )
    return accepted


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def loss_inside(output: Any) -> Any:
    """The loss that a model computed itself: ``output.loss``, ``output["loss"]``, a scalar output, or the one scalar of
    a tuple (``logits, loss``); None where there is none."""
    if isinstance(output, Mapping) and output.get("loss") is not None:
        return output["loss"]
    if not isinstance(output, Mapping | torch.Tensor | tuple | list) or hasattr(output, "_fields"):
        return getattr(output, "loss", None)
    if isinstance(output, torch.Tensor):
        return output if is_floating_scalar(output) else None
    scalars = [item for item in output if is_floating_scalar(item)] if isinstance(output, tuple | list) else []
    return scalars[0] if len(scalars) == 1 else None


def stand_in_loss(output: Any) -> torch.Tensor:
    """Mean of the squares of all floating outputs: trains nothing useful, but gives every layer a gradient.

    Raises:
        CaptureError: no output is floating.
    """
    floating = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        raise CaptureError(
            f"the model returned {_kind_of(output)}, with no floating tensor to train on",
            hint="write loss_fn(output, batch) in the model's file",
        )
    return torch.stack([tensor.float().square().mean() for tensor in floating]).sum()


def checked_scalar(value: Any, what: str) -> torch.Tensor:
    """``value`` as a 0-dimensional tensor; a tensor of one element counts.

    Raises:
        CaptureError: it is something else; the message gives its shape.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point():
        return value.reshape(()) if value.dim() else value
    raise CaptureError(
        f"{what} returned {_kind_of(value)}, expected a floating tensor of one element", hint=_loss_hint(value)
    )


def _loss_hint(value: Any) -> str:
    """What to write in place of what is no loss."""
    if isinstance(value, float | int):
        return "leave out .item() or float(): a number has no gradient"
    if value is None:
        return "end it with return loss"
    if isinstance(value, tuple | list | Mapping):
        return "return the loss alone, without what is logged beside it"
    return "reduce it, as in loss.mean()"


def is_floating_scalar(value: Any) -> bool:
    """Whether ``value`` is a 0-dimensional floating tensor, as a loss is."""
    return isinstance(value, torch.Tensor) and value.dim() == 0 and value.is_floating_point()


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nested output or batch, in order: tuples, lists, mappings, dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name, None))


def batch_tensors(batch: Any) -> Iterator[torch.Tensor]:
    """All tensors of a batch, also those in the attributes of objects, as graph libraries have."""
    yield from tensors_in(batch)
    if not isinstance(batch, torch.Tensor | Mapping | tuple | list) and not dataclasses.is_dataclass(batch):
        for value in vars(batch).values() if hasattr(batch, "__dict__") else ():
            yield from tensors_in(value)


def _kind_of(value: Any) -> str:
    """A value in a message: its type, and for a tensor its dtype and shape."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _holds_array(batch: Any) -> bool:
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else [batch]
    return any(type(value).__module__ == "numpy" for value in values)


_WANTS_GPU = ("not compiled with CUDA", "no NVIDIA driver", "No CUDA GPUs")


def _failed(what: str, error: UserCodeError) -> TargetError:
    where = f"{error.place}: " if error.place else ""
    hint = "leave out .cuda() and device='cuda': amptune moves the model and the batch by itself"
    wants_gpu = any(words in str(error) for words in _WANTS_GPU)
    return TargetError(f"{where}{what}: {error}", hint=hint if wants_gpu else None)
