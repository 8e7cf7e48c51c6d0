"""Loading a target: from functions of a file, a class of a file, or a callable of a package."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from amptune.capture.arguments import Construction, construction
from amptune.capture.built import construction_noted
from amptune.capture.execute import BOM, execute_file, read_source, source_hash
from amptune.capture.fakes import new_fake_mode, parameters_as_fakes
from amptune.capture.guess import guess_inputs
from amptune.capture.inputs import make_inputs, parse_inputs
from amptune.capture.models import model_classes
from amptune.capture.prepare import without_memory
from amptune.capture.state import load_batch, load_state
from amptune.capture.target import Kind, Target, TargetSpec
from amptune.capture.usercode import UserCodeError, shown_path, user_code
from amptune.errors import TargetError

FIVE_LINES = """add to {where}:
    def make_model():
        return {model}
    def make_batch():
        return torch.randn(16, 128), torch.randint(0, 10, (16,))  # inputs, targets
    def loss_fn(output, batch): return torch.nn.functional.cross_entropy(output, batch[1])"""
OPTIONAL = ("make_optimizer", "train_batches", "evaluate")


def load_target(spec: TargetSpec, *, source: str | None = None) -> Target:
    """Load what ``spec`` names.

    Args:
        spec: see TargetSpec.
        source: text to execute in place of the file's; its lines are those that messages and captures name.

    Raises:
        TargetError: nothing there, no model, several models, missing arguments, or the user's code failed.
    """
    if spec.batch and spec.inputs:
        raise TargetError("--batch and --input are both given", hint="give one of them")
    place, name = _split(spec.text)
    if _is_package_target(place, name):
        return _with_state(_from_package(spec, place, name))
    path = Path(place)
    disk = read_source(path)
    text = disk if source is None else source.removeprefix(BOM)
    with construction_noted():  # of a model that the file holds, ready made
        module = execute_file(path, text, beside=None if spec.beside is None else Path(spec.beside))
    return _with_state(_from_file(spec, path, module, name, text, source_hash(disk)))


def _with_state(target: Target) -> Target:
    """The target with the weights of ``--state`` in each model that it makes."""
    path, build = target.spec.state, target.build
    if path is None:
        return target

    def built() -> Any:
        model = build()
        if isinstance(model, nn.Module):
            load_state(model, path)
        return model

    target.build = built
    return target


def _split(text: str) -> tuple[str, str]:
    """``model.py:Name`` -> (``model.py``, ``Name``); a Windows drive's colon is no separator."""
    place, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        return text, ""
    return place, name


def _is_package_target(place: str, name: str) -> bool:
    dotted = all(part.isidentifier() for part in place.split("."))
    return bool(name) and dotted and not place.endswith(".py") and not Path(place).exists()


def _from_package(spec: TargetSpec, place: str, name: str) -> Target:
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)  # as for a script: the package may lie here
    try:
        with user_code():
            module = importlib.import_module(place)
            found = getattr(module, name, None)
    except UserCodeError as error:
        raise TargetError(f"cannot import {place}: {error}", hint="install it, or give a path to a .py file") from error
    if not callable(found):
        what = "is not callable" if found is not None else "does not exist"
        raise TargetError(f"{place}:{name} {what}", hint="name a function or class that gives the model")
    target = Target(spec, None, module, "callable", name, "", _nothing, _nothing)
    _supply_model(target, found)
    _supply_batch(target, module)
    return target


def _from_file(spec: TargetSpec, path: Path, module: ModuleType, name: str, text: str, sha256: str) -> Target:
    maker, kind = _named(module, name, path) if name else _found(module, path, text)
    label = getattr(maker, "__name__", name)
    target = Target(spec, path, module, kind, label, sha256, _nothing, _nothing)
    target.loss_fn = _function(module, "loss_fn")
    target.runner = _function(module, "run")
    target.has_loss = target.loss_fn is not None
    for optional in OPTIONAL:
        setattr(target, optional, _function(module, optional))
    _supply_model(target, maker, _config_classes(module))
    _supply_batch(target, module)
    return target


def _named(module: ModuleType, name: str, path: Path) -> tuple[Any, Kind]:
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found, "class"
    if isinstance(found, nn.Module) or callable(found):
        return found, "callable"
    known = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    listed = f"; its models are {', '.join(known)}" if known else ""
    raise TargetError(f"{shown_path(str(path))} has no model called {name!r}{listed}")


def _found(module: ModuleType, path: Path, text: str) -> tuple[Any, Kind]:
    maker = _function(module, "make_model")
    if maker is not None:
        return maker, "functions"
    shown = shown_path(str(path))
    classes = model_classes(module, text)
    if not classes:
        lines = FIVE_LINES.format(where=shown, model="...  # your torch.nn.Module")
        raise TargetError(f"{shown} has neither make_model() nor a torch.nn.Module class", hint=lines)
    if len(classes) > 1:
        listed = ", ".join(cls.__name__ for cls in classes)
        choice = f"{shown}:{classes[-1].__name__}"
        raise TargetError(f"{shown} has several models: {listed}", hint=f"name one, as in {choice}")
    return classes[0], "class"


def _function(module: ModuleType, name: str) -> Callable[..., Any] | None:
    found = getattr(module, name, None)
    return found if callable(found) else None


def _config_classes(module: ModuleType) -> list[type]:
    """Classes of the file that are no models and could be a configuration."""
    own = (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)
    return [cls for cls in own if not issubclass(cls, nn.Module)]


def _supply_model(target: Target, maker: Any, configs: list[type] | None = None) -> None:
    if isinstance(maker, nn.Module):
        target.build = lambda: copy.deepcopy(maker)
        return
    if isinstance(maker, type) and issubclass(maker, nn.Module) and maker.forward is nn.Module.forward:
        raise TargetError(f"{maker.__name__} has no forward()", hint="define forward(self, ...) in the class")
    if isinstance(maker, type) and isinstance(own := getattr(maker, "config_class", None), type):
        configs = [own]
    call = construction(maker, target.spec.arguments, configs or ())
    target.notes += call.notes
    target.build, target.construction = call, str(call)
    target.config_classes = tuple(
        config.factory for config in call.configs.values() if isinstance(config.factory, type)
    )
    if target.kind == "callable" and not isinstance(maker, type):
        _accept_pair(target, call)


def _accept_pair(target: Target, call: Construction) -> None:
    """A callable may give (model, batch); the model that comes with a batch is not needed, so it takes no memory."""

    def model() -> Any:
        made = call()
        return made[0] if _is_pair(made) else made

    def batch() -> Any:
        with parameters_as_fakes(new_fake_mode(), large_tensors=False):
            made = call()
        return made[1] if _is_pair(made) else None

    target.build, target.feed = model, batch


def _is_pair(made: Any) -> bool:
    return isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)


def _supply_batch(target: Target, module: ModuleType) -> None:
    if target.spec.batch is not None:
        kept = load_batch(target.spec.batch)
        target.feed = lambda: copy.deepcopy(kept)
        target.train_batches = None  # the failing batch is the one to look at
        return
    own = None if target.path is None else _function(module, "make_batch")
    if own is None and target.train_batches is not None and not target.spec.inputs:
        target.notes.append("make_batch() is missing: the first of train_batches() is used")
        own = _first_of(target.train_batches)
    if own is not None and not target.spec.inputs:
        target.feed = own
        return
    if own is None and not target.spec.inputs and target.kind == "callable" and _gives_batch(target):
        return
    if target.spec.inputs:
        specs = parse_inputs(target.spec.inputs, _forward_parameters(target))
    else:
        specs = guess_inputs(target)
    target.inputs = specs
    target.feed = lambda: make_inputs(specs)
    if target.loss_fn is not None:
        target.notes.append(
            "loss_fn is left out, since inputs that are given by --input or guessed have no targets: write "
            "make_batch() to have it"
        )
        target.loss_fn, target.has_loss = None, False


def _first_of(batches: Callable[[], Iterator[Any]]) -> Callable[[], Any]:
    return lambda: next(iter(batches()))


def _gives_batch(target: Target) -> bool:
    if target.feed is _nothing:
        return False
    try:
        with user_code():
            return target.feed() is not None
    except UserCodeError:  # told when the model is made
        return False


def _forward_parameters(target: Target) -> list[str]:
    signature = inspect.signature(without_memory(target, new_fake_mode(), notes=[]).forward)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind in kinds]


def _nothing() -> None:
    return None
