"""Constructor arguments from ``--arg name=value``, typed by annotation, default or literal."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from amptune.errors import TargetError

TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
CONFIG_NAMES = ("config", "cfg", "conf", "args", "hparams", "params", "opt")


@dataclasses.dataclass(frozen=True)
class Construction:
    """A call that can be made again and again: plain values, configuration objects, and what was assumed for it."""

    factory: Callable[..., Any]
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    configs: Mapping[str, Construction] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __call__(self) -> Any:
        """Make the call."""
        return self.factory(**self.values, **{name: make() for name, make in self.configs.items()})

    def __str__(self) -> str:
        """The call as source."""
        arguments = [f"{name}={value!r}" for name, value in self.values.items()]
        arguments += [f"{name}={config}" for name, config in self.configs.items()]
        return f"{self.factory.__name__}({', '.join(arguments)})"


def construction(factory: Callable[..., Any], texts: Mapping[str, str], configs: Sequence[type] = ()) -> Construction:
    """How to call ``factory`` with the user's ``--arg`` texts.

    A required parameter that is a configuration object (by its annotation, or by the name ``config`` with one of
    ``configs`` to choose from) is built with its defaults; texts that ``factory`` does not know go to its fields.

    Raises:
        TargetError: a required argument is missing, a text names none, or cannot be read as its type.
    """
    name = getattr(factory, "__name__", "the model")
    parameters = _parameters(factory)
    given = {key: text for key, text in texts.items() if key in parameters}
    rest = {key: text for key, text in texts.items() if key not in parameters}
    missing = [p for p in parameters.values() if p.default is p.empty and p.name not in given]
    found = {p.name: config for p in missing if (config := _config_class(p, configs)) is not None}
    _check_missing(name, [p for p in missing if p.name not in found])
    values = {key: parse_value(f"--arg {key}={text}", text, parameters[key]) for key, text in given.items()}
    if found:
        built = {key: construction(config, rest) for key, config in found.items()}
        notes = tuple(f"{name} was built with {key}={config}" for key, config in built.items())
        return Construction(factory, values, built, notes)
    _check_unknown(name, rest, parameters, _takes_anything(factory))
    values |= {key: parse_value(f"--arg {key}={text}", text, None) for key, text in rest.items()}
    return Construction(factory, values)


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters, with annotations resolved where they can be."""
    signature = _signature(factory)
    function: Any = vars(factory).get("__init__", factory) if isinstance(factory, type) else factory
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations may name anything, also what does not exist: then they say nothing
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.replace(annotation=hints.get(name, parameter.annotation))
        for name, parameter in signature.parameters.items()
        if parameter.kind in kinds
    }


def _takes_anything(factory: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _signature(factory).parameters.values())


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    """The signature; an empty one for builtins that have none."""
    try:
        return inspect.signature(factory)
    except ValueError:
        return inspect.Signature()


def _config_class(parameter: inspect.Parameter, configs: Sequence[type]) -> type | None:
    annotation = None if parameter.annotation is parameter.empty else parameter.annotation
    if isinstance(annotation, type) and annotation.__module__ not in {"builtins", "torch"}:
        return annotation if _needs_nothing(annotation) else None
    fitting = [config for config in configs if _needs_nothing(config)]
    return fitting[0] if parameter.name in CONFIG_NAMES and len(fitting) == 1 else None


def _needs_nothing(cls: type) -> bool:
    try:
        inspect.signature(cls).bind()
    except (TypeError, ValueError):
        return False
    return True


def _check_missing(name: str, missing: list[inspect.Parameter]) -> None:
    if not missing:
        return
    listed = ", ".join(
        f"{p.name}: {_type_name(p.annotation)}" if p.annotation is not p.empty else p.name for p in missing
    )
    flags = " ".join(f"--arg {p.name}=..." for p in missing)
    raise TargetError(
        f"{name} needs {'an argument' if len(missing) == 1 else 'arguments'} without a default: {listed}",
        hint=f"give {flags}, or write make_model() in the file",
    )


def _check_unknown(
    name: str, rest: Mapping[str, str], parameters: Mapping[str, inspect.Parameter], takes_anything: bool
) -> None:
    if not rest or takes_anything:
        return
    wrong = next(iter(rest))
    near = difflib.get_close_matches(wrong, parameters, n=1)
    known = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
    raise TargetError(f"{name} has no argument {wrong!r}; {known}", hint=f"did you mean {near[0]}?" if near else None)


def parse_value(flag: str, text: str, parameter: inspect.Parameter | None) -> Any:
    """A text as the type of ``parameter``: its annotation, else its default's type, else the literal it spells.

    Raises:
        TargetError: the text is no such value; the message shows ``flag``.
    """
    kind = _kind_of(parameter)
    try:
        return _converted(text, kind)
    except (ValueError, SyntaxError, KeyError):
        raise TargetError(f"{flag}: {text!r} is not {_type_name(kind)}") from None


def _kind_of(parameter: inspect.Parameter | None) -> Any:
    if parameter is None:
        return None
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    return None if parameter.default in (parameter.empty, None) else type(parameter.default)


def _converted(text: str, kind: Any) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_reads(text, options)
    if origin is typing.Literal:
        return {str(option): option for option in options}[text]
    if kind is bool:
        return _boolean(text)
    if kind in (int, float, str):
        return kind(text)
    if kind is torch.dtype:
        return _dtype(text)
    return _literal(text)


def _first_that_reads(text: str, options: tuple[Any, ...]) -> Any:
    if type(None) in options and text.lower() in {"none", "null"}:
        return None
    # str reads every text, so it is asked last.
    for option in sorted((o for o in options if o is not type(None)), key=lambda o: o is str):
        try:
            return _converted(text, option)
        except (ValueError, SyntaxError, KeyError):
            continue
    raise ValueError(text)


def _boolean(text: str) -> bool:
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise ValueError(text)


def _dtype(text: str) -> torch.dtype:
    value = getattr(torch, text.removeprefix("torch."), None)
    if isinstance(value, torch.dtype):
        return value
    raise ValueError(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _type_name(kind: Any) -> str:
    if kind is None:
        return "a value"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")
