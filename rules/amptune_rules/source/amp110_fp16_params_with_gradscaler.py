"""AMP110: the parameters that a GradScaler is to unscale the gradients of are float16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._trained import casts_back, conversions, is_in_force, trained
from amptune_rules.source._trainers import is_training_arguments, local_class

_OWN_SCALING = ("fp16", "mixedprecision", "deepspeed", "master")


class Fp16ParamsWithGradscaler(SourceRule):
    """A model whose weights were converted to float16 is trained through a GradScaler.

    ## What it does
    Flags `.half()`, `.to(torch.float16)` and `torch_dtype=torch.float16` on a model whose parameters go to the
    optimizer, in a file that makes a `GradScaler` (error), or makes one under another condition (info); and a model
    loaded so that the Trainer of Hugging Face gets together with `fp16=True`, for which it makes a scaler.

    ## Why is this bad
    `scaler.unscale_` and `scaler.step` raise `ValueError: Attempting to unscale FP16 gradients.`. The scaler is made
    for float32 weights: a float16 weight of 1.0 cannot take an update below 4.9e-4 (half of its last place), so most
    steps of a typical learning rate would be rounded away.

    ## Example
    ```python
    import torch
    model = Net().cuda().half()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        scaler.scale(loss_fn(model(x.half()), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    No fix. Dropping the conversion needs autocast around the forward, and the inputs must not be converted either; a
    model that was loaded in float16 to save memory needs its trainable parameters cast to float32.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP110"
    name = "fp16-params-with-gradscaler"
    severity = Severity.ERROR
    keywords = (b"GradScaler", b"TrainingArguments")

    INVALID = (
        Example(
            "half model",
            """\
import torch

def train(make, loader):
    model = make()
    model.half()  # <- AMP110@5
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "converted to a dtype that has a name, filtered parameters",
            """\
import torch

class Trainer:
    def __init__(self, model, device):
        dtype = torch.float16
        self.model = model.to(device, dtype=dtype)  # <- AMP110
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4)
        self.scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "loaded in float16",
            """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)  # <- AMP110
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "loaded in float16, for a Trainer with fp16",
            """\
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

class Weighted(Trainer):
    pass

def main(name, data):
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float16)  # <- AMP110
    settings = TrainingArguments("out", fp16=True, learning_rate=1e-5)
    Weighted(model, settings, train_dataset=data).train()
""",
        ),
        Example(
            "converted under another flag",
            """\
import torch

def train(model, args):
    if args.half_weights:
        model = model.half()  # <- AMP110
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=args.amp)
    return optimizer, scaler
""",
        ),
    )
    VALID = (
        Example(
            "loaded in float16, for a Trainer of adapters",
            """\
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTTrainer

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)
args = TrainingArguments(output_dir="out", fp16=True)
SFTTrainer(model=model, args=args, peft_config=LoraConfig()).train()
""",
        ),
        Example(
            "loaded in bfloat16 or float32, for a Trainer with fp16",
            """\
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model = AutoModelForCausalLM.from_pretrained("gpt2")
Trainer(model=model, args=TrainingArguments(output_dir="out", fp16=True)).train()
""",
        ),
        Example(
            "float16 without a scaler of the Trainer's",
            """\
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

def evaluate(name, data):
    model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.float16)
    args = TrainingArguments(output_dir="out", fp16=False, fp16_full_eval=True)
    return Trainer(model=model, args=args, eval_dataset=data).evaluate()
""",
        ),
        Example(
            "float32 weights and autocast",
            """\
import torch

def train(model, loader):
    model = model.to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x.to("cuda", torch.float16))  # <- AMP209
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "the half model is a frozen teacher",
            """\
import torch

def train(student, teacher):
    teacher = teacher.half().eval()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    return teacher, optimizer, torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "trainable parameters cast back",
            """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)
for p in model.parameters():
    if p.requires_grad:
        p.data = p.data.float()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "converted for export after the training",
            """\
import torch

def train(model, loader, path):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
    model.half()
    torch.save(model, path)
""",
        ),
        Example(
            "adapters in float32 on a half model",
            """\
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)
model = get_peft_model(model, LoraConfig())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "scaler only without half weights",
            """\
import torch

def prepare(model, half):
    if half:
        model = model.half()
        scaler = None
    else:
        scaler = torch.amp.GradScaler("cuda")
    return torch.optim.SGD(model.parameters(), 0.1), scaler
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Conversions to float16 of what the optimizer trains."""
        if casts_back(source):
            return
        yield from self._of_trainers(source)
        scalers = [call for call in source.kinds.scaler_constructors() if _may_be_on(source, call)]
        if not scalers:
            return
        for optimizer, model in trained(source):
            for conversion in conversions(source, model, "float16"):
                if not is_in_force(source, conversion, optimizer):
                    continue
                related = [call for call in scalers if not _excludes(source, conversion, call)]
                if not related:
                    continue
                certain = any(_goes_with(source, conversion, call) for call in related)
                message = (
                    f"{source.segment(model)} has float16 weights here, scaler.step raises 'Attempting to unscale FP16 "
                    "gradients': keep float32 weights and use autocast"
                )
                yield source.finding(self, conversion, message, severity=Severity.ERROR if certain else Severity.INFO)

    def _of_trainers(self, source: SourceFile) -> Iterator[Finding]:
        """Models in float16 that a Trainer trains through a scaler of its own; evaluation alone scales nothing."""
        found: dict[ast.Call, ast.expr] = {}
        if source.method_calls("train"):
            for _, model in _scaled_by_trainer(source):
                found.update(dict.fromkeys(conversions(source, model, "float16"), model))
        for conversion, model in found.items():
            message = (
                f"{source.segment(model)} has float16 weights here, and with fp16=True the Trainer makes a scaler, "
                "which raises 'Attempting to unscale FP16 gradients': load float32 weights"
            )
            yield source.finding(self, conversion, message)


def _scaled_by_trainer(source: SourceFile) -> Iterator[tuple[ast.Call, ast.expr]]:
    """Trainers of Hugging Face with fp16=True that train all of a model, and the model."""
    if source.method_calls("add_adapter", "requires_grad_"):
        return
    for call in source.nodes(ast.Call):
        model, args = source.argument(call, "model", 0), source.argument(call, "args", 1)
        is_trainer = last_name(call.func).endswith("Trainer") or _is_derived(source, call.func)
        if not is_trainer or model is None or args is None or source.argument(call, "peft_config") is not None:
            continue
        for leaf in source.values(args):
            if isinstance(leaf, ast.Call) and is_training_arguments(source, leaf.func):
                fp16 = source.argument(leaf, "fp16")
                if fp16 is not None and source.constant(fp16) is True:
                    yield call, model


def _is_derived(source: SourceFile, cls: ast.expr) -> bool:
    local = local_class(source, cls)
    return local is not None and any(last_name(base).endswith("Trainer") for base in local.bases)


def _may_be_on(source: SourceFile, call: ast.Call) -> bool:
    enabled = source.kinds.enabled_by(call)
    return enabled is None or source.constant(enabled) is not False


def _gates(source: SourceFile, node: ast.AST) -> list[tuple[ast.If, bool]]:
    """The conditions around a node in its function, each with the side that the node is on."""
    found: list[tuple[ast.If, bool]] = []
    child = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, ast.FunctionDef | ast.AsyncFunctionDef):
            break
        if isinstance(ancestor, ast.If):
            found.append((ancestor, child in ancestor.body))
        child = ancestor
    return found


def _excludes(source: SourceFile, conversion: ast.Call, scaler: ast.Call) -> bool:
    """Whether the two are on different sides of one condition."""
    sides = dict(_gates(source, scaler))
    return any(sides.get(gate, side) is not side for gate, side in _gates(source, conversion))


def _goes_with(source: SourceFile, conversion: ast.Call, scaler: ast.Call) -> bool:
    """Whether the scaler is sure to be on when the weights are converted."""
    around = {(ast.dump(gate.test), side) for gate, side in _gates(source, scaler)}
    own = {(ast.dump(gate.test), side) for gate, side in _gates(source, conversion)}
    choice = isinstance(source.parent(scaler), ast.IfExp) or isinstance(source.parent(conversion), ast.IfExp)
    enabled = source.kinds.enabled_by(scaler)
    switched = enabled is not None and source.constant(enabled) is not True
    if switched and own:
        return any(ast.dump(enabled) == test for test, side in own if side) if enabled is not None else False
    return own <= around and not choice
