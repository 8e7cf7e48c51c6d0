"""Pieces of Python that several exported files share."""

from __future__ import annotations

import json
from collections.abc import Mapping

from amptune import __version__
from amptune.core.plan import Plan, ScalerConfig
from amptune.export.export import Export, Lost, comment_block
from amptune.export.model import ModelFile
from amptune.export.view import by_format, scale_literal

FEED = '''\
def feed(model, batch):
    """The model's output, fed as amptune fed it: (inputs, targets), or a dict with forward's arguments in it."""
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    if isinstance(inputs, dict):
        return model(**accepted(model, inputs))
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def accepted(model, inputs):
    """What forward takes of ``inputs``: the targets may be among them."""
    plain = getattr(model, "_orig_mod", model)  # torch.compile and DistributedDataParallel take anything themselves
    plain = plain.module if isinstance(plain, torch.nn.parallel.DistributedDataParallel) else plain
    parameters = inspect.signature(plain.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return inputs
    return {name: value for name, value in inputs.items() if name in parameters}
'''

TO_DEVICE = '''\
def to_device(value, device):
    """Tensors in tuples, lists and dicts on ``device``."""
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
'''


def python_file(
    title: str, plan: Plan, model: ModelFile, code: str, *, lost: list[Lost], notes: tuple[str, ...] = ()
) -> Export:
    """An export in Python: head of comments, then ``code``."""
    notes = (*notes, *model.notes, *plan_notes(plan))
    head = comment_block(headline(title, plan), tuple(lost), notes)
    return Export(f"{head}\n{code}", tuple(lost), notes)


def headline(title: str, plan: Plan) -> str:
    """First sentence of a file: what it is, from which plan, measured where."""
    where = [str(plan.measured_on[key]) for key in ("gpu", "mode") if plan.measured_on.get(key)]
    measured = f", measured on {', '.join(where)}" if where else ""
    what = by_format(plan.sites) or "no site planned"
    return f"{title}, by amptune {__version__} from plan {plan.behaviour_hash()}{measured} ({what})."


SET_FLAGS = "set_backend_flags()  # process-wide TF32 flags, as they were measured"
"""The line that sets the patched file's flags."""


def tf32_flags(plan: Plan) -> str:
    """The line that sets TF32 where the model is not patched: under autocast only matrix products are left to it."""
    return f'torch.set_float32_matmul_precision("{"high" if plan.tf32 else "highest"}")  # TF32 as it was measured'


def plan_notes(plan: Plan) -> tuple[str, ...]:
    """What to know of the plan itself, whatever the target."""
    if plan.uses_fp16 and not plan.scaler.enabled:
        return ("The plan has FP16 sites but its scaler is off, so small gradients become zero: set scaler.enabled.",)
    return ()


def feeding(model: ModelFile) -> tuple[str, str]:
    """A helper to put into the file (empty where the user's ``run`` does it), and the expression for the output."""
    return ("", "run(model, batch)") if model.has("run") else (f"{FEED}\n\n", "feed(model, batch)")


def feed_import(model: ModelFile) -> str:
    """The import that the helper of ``feeding`` needs, a line or nothing."""
    return "" if model.has("run") else "import inspect\n"


def standard_imports(*lines: str) -> str:
    """Import lines of the standard library as a block of their own, or nothing."""
    return f"{''.join(lines)}\n" if any(lines) else ""


def loss_of(model: ModelFile) -> str:
    """The expression for the loss of ``output`` and ``batch``."""
    return "loss_fn(output, batch)" if model.has("loss_fn") else "output.loss"


def optimizer_of(model: ModelFile, parameters: str = "model.parameters()") -> str:
    """The expression for the optimizer: the user's, or the one that tune uses without it."""
    if model.has("make_optimizer"):
        return f"make_optimizer({parameters})"
    return f"torch.optim.AdamW({parameters}, lr=3e-4)"


def data_of(model: ModelFile) -> str:
    """The function of the user's file that gives batches."""
    return "train_batches" if model.has("train_batches") else "make_batch"


def batches_of(model: ModelFile) -> str:
    """Lines of a function ``batches()`` without an end."""
    source = "yield from train_batches()" if model.has("train_batches") else "yield make_batch()  # your data here"
    if not model.has("train_batches") and not model.has("make_batch"):
        source = 'raise NotImplementedError("yield your batches here")'
        return f'def batches():\n    """Batches without an end."""\n    {source}\n    yield\n'
    return f'def batches():\n    """Batches without an end."""\n    while True:\n        {source}\n'


def loop_parts(plan: Plan, model: ModelFile, *, original: bool) -> dict[str, str]:
    """What a file with a trainer's own loop is filled with: imports, model, flags, and how a batch becomes a loss.

    Args:
        plan: gives the TF32 flag.
        model: the user's file.
        original: whether the trainer's own autocast is the plan, so that the model needs no patch.
    """
    feed, output = feeding(model)
    names = ("loss_fn", "make_optimizer", data_of(model), "run", "set_backend_flags")
    return {
        "imports": model.imports(*names, original=original),
        "builder": model.original_builder if original else model.builder,
        "flags": tf32_flags(plan) if original else SET_FLAGS,
        "feed": feed,
        "output": output,
        "loss": loss_of(model),
        "batches": batches_of(model),
    }


def scaler_arguments(scaler: ScalerConfig) -> str:
    """The arguments of torch's GradScaler after the device: ``init_scale=2.0**13, growth_factor=2.0, ...``."""
    return (
        f"init_scale={scale_literal(scaler.init_scale)}, growth_factor={scaler.growth_factor}, "
        f"backoff_factor={scaler.backoff_factor}, growth_interval={scaler.growth_interval}"
    )


def dict_literal(name: str, values: Mapping[str, object], comment: str = "") -> str:
    """A dict as Python source, one entry a line."""
    lines = [f"    {json.dumps(key, ensure_ascii=False)}: {_literal(value)}," for key, value in values.items()]
    after = f"  # {comment}" if comment else ""
    if not lines:
        return f"{name} = {{}}{after}\n"
    return "\n".join([f"{name} = {{{after}", *lines, "}"]) + "\n"


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
