"""A checkpoint and a batch of the user's own, so that a run starts at the moment that fails. Never pickle."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor

from amptune.capture.usercode import shown_path
from amptune.errors import TargetError

_MODEL_KEYS = ("model", "state_dict", "model_state_dict", "module", "net")
"""Under which keys training scripts keep the model's ``state_dict`` in a checkpoint."""
_KEYS = {"optimizer": ("optimizer", "optimizer_state_dict", "optim", "opt")}
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and Lightning put before each name."""


def load_file(path: str, what: str) -> Any:
    """What ``torch.save`` wrote, tensors and plain containers only.

    Raises:
        TargetError: the file is missing, is no such file, or holds other objects.
    """
    shown = shown_path(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TargetError(f"{what} {shown} does not exist") from None
    except pickle.UnpicklingError as error:
        text = str(error)
        if "weights_only" in text or "Unsupported" in text or "WeightsUnpickler" in text:
            raise TargetError(
                f"{what} {shown} holds more than tensors and plain containers, and is not unpickled",
                hint="save tensors alone: torch.save(model.state_dict(), path), torch.save((inputs, targets), path)",
            ) from error
        raise TargetError(f"{what} {shown} cannot be read: it is not what torch.save writes") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or "it is not what torch.save writes, or it is cut off"
        raise TargetError(f"{what} {shown} cannot be read: {reason}") from error


def load_state(model: nn.Module, path: str) -> None:
    """Put the weights of a checkpoint into ``model``: a ``state_dict``, or a dict that holds one.

    Raises:
        TargetError: it cannot be read, holds none, or does not fit the model; names and shapes are given.
    """
    state = _state_dict(load_file(path, "--state"), path)
    own = model.state_dict()
    state = _without_prefix(state, own)
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or surplus or wrong:
        raise TargetError(
            f"--state {shown_path(path)} does not fit the model: {_difference(missing, surplus, wrong, own, state)}",
            hint="give the --arg that the checkpoint was trained with, or the checkpoint of this model",
        )
    if not any(isinstance(tensor, FakeTensor) for tensor in own.values()):
        model.load_state_dict(state)


def training_state(path: str | None, what: str) -> Any:
    """The optimizer's state in a checkpoint; None where there is none."""
    if path is None:
        return None
    data = load_file(path, "--state")
    if not isinstance(data, Mapping):
        return None
    return next((data[key] for key in _KEYS[what] if isinstance(data.get(key), Mapping)), None)


def load_batch(path: str) -> Any:
    """The batch in a file.

    Raises:
        TargetError: it cannot be read, or holds no tensor.
    """
    from amptune.capture.target import batch_tensors

    batch = load_file(path, "--batch")
    if not any(True for _ in batch_tensors(batch)):
        raise TargetError(
            f"--batch {shown_path(path)} holds no tensor", hint="torch.save((inputs, targets), path), or a dict"
        )
    return tuple(batch) if isinstance(batch, list) else batch


def _state_dict(data: Any, path: str) -> Mapping[str, torch.Tensor]:
    candidates = [data, *(data.get(key) for key in _MODEL_KEYS)] if isinstance(data, Mapping) else []
    for found in candidates:
        if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return found
    raise TargetError(
        f"--state {shown_path(path)} holds no state_dict",
        hint=f"save model.state_dict(), alone or under one of {', '.join(_MODEL_KEYS)}",
    )


def _without_prefix(state: Mapping[str, torch.Tensor], own: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    for _ in _PREFIXES:
        for prefix in _PREFIXES:
            stripped = all(name.startswith(prefix) for name in state)
            if stripped and not all(name in own for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _difference(
    missing: list[str], surplus: list[str], wrong: list[str], own: Mapping[str, Any], state: Mapping[str, Any]
) -> str:
    parts = [f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
             for names, what in ((missing, "missing"), (surplus, "not of this model")) if names]  # fmt: skip
    if wrong:
        name = wrong[0]
        shapes = f"{name} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} in the model"
        parts.append(f"{len(wrong)} of another shape: {shapes}")
    return "; ".join(parts)
