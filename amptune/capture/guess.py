"""Guessing a batch: from the first layer that runs, or from a transformers configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from amptune.capture.fakes import FakeRules, FakeTensorMode, fake_batch, new_fake_mode
from amptune.capture.inputs import InputSpec, make_inputs
from amptune.capture.prepare import without_memory
from amptune.capture.usercode import UserCodeError, quiet, user_code
from amptune.errors import TargetError

if TYPE_CHECKING:
    from amptune.capture.target import Target

BATCH = 8
LENGTHS = (128, 64, 32, 16, 8)
SIDES = (32, 64, 28, 224, 96, 128, 256, 16, 8, 299)
SHORT_SIDES = (1, 4, 8, 16)
_PROBES = (
    InputSpec((2, 8)), InputSpec((2, 8), torch.int64), InputSpec((2, 8, 8)), InputSpec((2, 8, 8, 8)),
    InputSpec((2, 8, 8, 8, 8)),
)  # fmt: skip


class _FirstLayer(Exception):  # noqa: N818
    """Stops a probing forward at the first layer whose input can be told."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def guess_inputs(target: Target) -> tuple[InputSpec, ...]:
    """Inputs that the model runs with; what was guessed goes into the target's notes.

    Raises:
        TargetError: no guess runs; the message names forward's parameters and shows how to give them.
    """
    mode = new_fake_mode()
    model = without_memory(target, mode, notes=[])
    with quiet():
        found = next((pair for pair in _candidates(model, mode) if _runs(target, model, pair[0], mode)), None)
    if found is None:
        raise _no_guess(target, model)
    shown = " ".join(f"--input {spec}" for spec in found[0])
    target.notes.append(f"inputs were guessed from {found[1]}: {shown}")
    return found[0]


def _candidates(model: nn.Module, mode: FakeTensorMode) -> Iterator[tuple[tuple[InputSpec, ...], str]]:
    named = _from_configuration(model)
    if named:
        yield named, "the model's configuration"
    needed = _required(model)
    if len(needed) > 1:
        return
    paths = {id(module): path for path, module in model.named_modules()}
    for layer in _first_layers(model, mode):
        why = f"the first layer that runs, {paths.get(id(layer)) or 'the model itself'} ({type(layer).__name__})"
        for spec in _shapes(layer, model):
            yield (spec,), why


def _required(model: nn.Module) -> list[str]:
    """forward's parameters without a default."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def _first_layers(model: nn.Module, mode: FakeTensorMode) -> Iterator[nn.Module]:
    """The first layer that runs, as probing forwards show; else layers in the order in which they were made."""
    seen: set[int] = set()
    for probe in _PROBES:
        layer = _probe(model, probe, mode)
        if layer is not None and id(layer) not in seen:
            seen.add(id(layer))
            yield layer
    if not seen:
        yield from [module for module in model.modules() if _is_telling(module)][:3]


def _probe(model: nn.Module, probe: InputSpec, mode: FakeTensorMode) -> nn.Module | None:
    def stop(module: nn.Module, inputs: Any) -> None:
        if _is_telling(module):
            raise _FirstLayer(module)

    handle = nn.modules.module.register_module_forward_pre_hook(stop)
    try:
        with user_code(), torch.no_grad(), FakeRules(mode):
            model(fake_batch(make_inputs([probe]), mode))
    except UserCodeError as error:
        return error.cause.layer if isinstance(error.cause, _FirstLayer) else None
    finally:
        handle.remove()
    return None


_TELLING = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
            nn.MultiheadAttention, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)  # fmt: skip


def _is_telling(module: nn.Module) -> bool:
    return isinstance(module, _TELLING) and not nn.parameter.is_lazy(next(module.parameters(), torch.empty(0)))


def _shapes(layer: nn.Module, model: nn.Module) -> Iterator[InputSpec]:
    """Inputs that a first layer could take, likely ones first."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        yield from (InputSpec((BATCH, length), torch.int64, layer.num_embeddings) for length in LENGTHS)
        yield InputSpec((BATCH,), torch.int64, layer.num_embeddings)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        yield from _images(layer, model)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features
        yield from (InputSpec((BATCH, channels, *[side] * rank)) for rank in (0, 2, 1, 3) for side in SIDES)
    else:
        yield from _vectors(layer)


def _images(layer: nn.modules.conv._ConvNd, model: nn.Module) -> Iterator[InputSpec]:
    rank = len(layer.kernel_size)
    own = [getattr(model, name, None) for name in ("image_size", "img_size", "input_size", "resolution")]
    named = [size for size in own if isinstance(size, int) and not isinstance(size, bool)]
    sides: Sequence[int] = {1: (1024, *LENGTHS, 16000), 2: SIDES, 3: (16, 32, 64)}[rank]
    if layer.transposed:
        sides = (*SHORT_SIDES, *sides)
    patch = layer.stride[-1] if layer.stride[-1] == layer.kernel_size[-1] else 1
    for side in dict.fromkeys([*named, *sides]):
        # A single patch would broadcast against position embeddings of any number.
        if patch == 1 or (side % patch == 0 and side >= 2 * patch):
            yield InputSpec((BATCH, layer.in_channels, *[side] * rank))


def _vectors(layer: nn.Module) -> Iterator[InputSpec]:
    """Layers that work on the last axis: of rows first, then of sequences."""
    names = ("in_features", "in1_features", "input_size", "embed_dim", "normalized_shape")
    width = next(value for name in names if (value := getattr(layer, name, None)) is not None)
    tail = tuple(width) if isinstance(width, tuple | list) else (int(width),)
    sequence_first = isinstance(layer, nn.RNNBase | nn.MultiheadAttention) and not layer.batch_first
    rows = [InputSpec((BATCH, *tail))]
    sequences = [
        InputSpec((length, BATCH, *tail) if sequence_first else (BATCH, length, *tail)) for length in LENGTHS[1:]
    ]
    prefers_rows = isinstance(layer, nn.Linear | nn.Bilinear | nn.RNNCellBase)
    yield from rows + sequences if prefers_rows else sequences + rows
    yield from (InputSpec((BATCH, side, side, *tail)) for side in SHORT_SIDES[1:])


def _from_configuration(model: nn.Module) -> tuple[InputSpec, ...]:
    """Inputs of a transformers model, by the name of its main input."""
    config, main = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is None or not isinstance(main, str):
        return ()
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if main == "input_ids" and isinstance(getattr(text, "vocab_size", None), int):
        return tuple(_token_inputs(model, config, text))
    vision = getattr(config, "vision_config", config)
    size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
    if main == "pixel_values" and size is not None:
        sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
        return (InputSpec((BATCH, channels, *sides), name=main),)
    return ()


def _token_inputs(model: nn.Module, config: Any, text: Any) -> Iterator[InputSpec]:
    limit = getattr(text, "max_position_embeddings", None)
    shape = (BATCH, min(LENGTHS[0], limit) if isinstance(limit, int) and limit > 0 else LENGTHS[0])
    yield InputSpec(shape, torch.int64, text.vocab_size, "input_ids")
    if getattr(config, "is_encoder_decoder", False):
        yield InputSpec(shape, torch.int64, text.vocab_size, "decoder_input_ids")
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")):
        yield InputSpec(shape, torch.int64, text.vocab_size, "labels")


def _runs(target: Target, model: nn.Module, specs: Sequence[InputSpec], mode: FakeTensorMode) -> bool:
    """Whether a forward takes the inputs; one that fails for want of values took them."""
    try:
        with user_code(), torch.no_grad(), FakeRules(mode):
            target.call(model, fake_batch(make_inputs(specs), mode))
    except UserCodeError as error:
        return type(error.cause).__module__.startswith("torch._subclasses")
    return True


def _no_guess(target: Target, model: nn.Module) -> TargetError:
    needed = ", ".join(_required(model)) or "its inputs"
    names = _required(model) if len(_required(model)) > 1 else []
    flags = " ".join(f"--input {name}=8x64:int64:1000" for name in names) or "--input 8x3x224x224, or 8x64:int64:1000"
    where = target.path.name if target.path else "a file of your own"
    lines = (
        f"give {flags}; or write in {where}:\n"
        "    def make_batch():\n"
        f"        return dict({', '.join(f'{name}=torch.randn(8, 64)' for name in names or ['x'])})"
    )
    return TargetError(
        f"no inputs are given for {target.name}.forward({needed}), and none could be guessed", hint=lines
    )
