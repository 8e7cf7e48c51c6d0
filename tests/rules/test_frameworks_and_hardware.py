"""Loops of frameworks, and hardware (AMP506 to AMP512, AMP6xx), in spellings beyond the rules' own examples."""

from __future__ import annotations

import pytest

from amptune.core.rule import SourceRule
from amptune.lint.check import check_text
from amptune.testing import source_rules

RULES: list[SourceRule] = [cls() for cls in source_rules(["amptune_rules"]) if cls.code.startswith(("AMP5", "AMP6"))]


def codes(path: str, text: str) -> list[str]:
    """Rules that speak, each once."""
    return sorted({finding.rule for finding in check_text(path, text, RULES)})


# name, path, expected rules, text
CASES = [
    (
        "accelerate: precision by option",
        "a.py",
        ["AMP506"],
        """\
from accelerate import Accelerator
import torch
from torch import nn
def main(args):
    accelerator = Accelerator(mixed_precision=args.mp)
    for epoch in range(3):
        for step, batch in enumerate(loader):
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
""",
    ),
    (
        "accelerate: scaler steps",
        "a.py",
        ["AMP506"],
        """\
from accelerate import Accelerator
from torch.cuda.amp import GradScaler
accelerator = Accelerator(mixed_precision="fp16")
scaler = GradScaler()
for batch in loader:
    loss = model(batch)
    accelerator.backward(loss)
    scaler.unscale_(optimizer)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
""",
    ),
    (
        "accelerate: scaled loss in a name",
        "a.py",
        ["AMP506"],
        """\
from accelerate import Accelerator
from torch.cuda.amp import GradScaler
class T:
    def __init__(self):
        self.accelerator = Accelerator(mixed_precision="fp16")
        self.scaler = GradScaler()
    def step(self, batch):
        loss = self.scaler.scale(self.model(batch))
        self.accelerator.backward(loss)
        self.scaler.step(self.optimizer)
        self.scaler.update()
""",
    ),
    (
        "accelerate: no mixed precision",
        "a.py",
        [],
        """\
from accelerate import Accelerator
import torch
accelerator = Accelerator(mixed_precision="no")
for b in loader:
    accelerator.backward(model(b))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
""",
    ),
    (
        "keras: train_step",
        "a.py",
        ["AMP507"],
        """\
import tensorflow as tf
from tensorflow import keras
tf.keras.mixed_precision.set_global_policy('mixed_float16')
class M(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compiled_loss(y, y_pred)
        grads = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.trainable_variables))
""",
    ),
    (
        "keras: policy by name, two tapes",
        "a.py",
        ["AMP507"],
        """\
import tensorflow as tf
mp = tf.keras.mixed_precision
name = "mixed_float16"
mp.set_global_policy(mp.Policy(name))
def step(x, y):
    with tf.GradientTape(persistent=True) as gen_tape, tf.GradientTape() as disc_tape:
        l = loss(x, y)
    g = gen_tape.gradient(l, gen.trainable_variables)
    gen_opt.apply_gradients(zip(g, gen.trainable_variables))
""",
    ),
    (
        "keras: rewrite",
        "a.py",
        ["AMP508"],
        """\
import tensorflow as tf
opt = tf.train.experimental.enable_mixed_precision_graph_rewrite(tf.keras.optimizers.Adam(1e-3), loss_scale="dynamic")
""",
    ),
    (
        "keras: policy with loss_scale",
        "a.py",
        ["AMP508"],
        """\
from tensorflow.keras.mixed_precision import experimental as mp
mp.set_policy(mp.Policy("mixed_float16", loss_scale="dynamic"))
""",
    ),
    (
        "keras: scaled loss in Keras 3",
        "a.py",
        ["AMP509"],
        """\
import keras
from keras import ops
opt = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam())
def f(loss): return opt.get_scaled_loss(loss)
""",
    ),
    (
        "jax: field of a module",
        "a.py",
        ["AMP510"],
        """\
import jax, jax.numpy as jnp, optax
import flax.linen as nn
class M(nn.Module):
    dtype: jnp.dtype = jnp.float16
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, dtype=self.dtype)(x)
def train_step(state, b):
    def loss_fn(p): return M().apply(p, b).mean()
    grads = jax.grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads)
""",
    ),
    (
        "jax: argument of a model",
        "a.py",
        ["AMP510"],
        """\
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.training import train_state
model = CNN(dtype=jnp.float16)
@jax.jit
def train_step(state, batch):
    grad_fn = jax.value_and_grad(loss_fn)
    loss, grads = grad_fn(state.params)
    return state.apply_gradients(grads=grads)
""",
    ),
    (
        "jax: arrays and strings",
        "a.py",
        ["AMP510"],
        """\
import jax
import jax.numpy as jnp
def loss(params, x, y):
    x = jnp.asarray(x, jnp.float16)
    params = jax.tree.map(lambda p: p.astype("float16"), params)
    return ((x @ params["w"] - y) ** 2).mean()
g = jax.grad(loss)
""",
    ),
    (
        "fsdp: scaler by option",
        "a.py",
        ["AMP511"],
        """\
import torch, functools
from torch.cuda.amp import GradScaler
from torch.distributed.fsdp.fully_sharded_data_parallel import FullyShardedDataParallel as FSDP
def main(args):
    model = FSDP(Net(), device_id=0)
    scaler = GradScaler(enabled=args.amp)
""",
    ),
    (
        "fsdp: autocast of cuda.amp",
        "a.py",
        ["AMP512"],
        """\
import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, MixedPrecision
bf16 = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
model = FSDP(model, mixed_precision=bf16)
with torch.cuda.amp.autocast():
    loss = model(x)
loss.backward()
""",
    ),
    (
        "collator: module name",
        "a.py",
        ["AMP603"],
        """\
from transformers import *
import transformers
collator = transformers.DataCollatorWithPadding(tokenizer=tokenizer)
args = transformers.TrainingArguments("o", fp16=True)
""",
    ),
    (
        "bf16: branches",
        "a.py",
        ["AMP604"],
        """\
import torch
if torch.cuda.is_bf16_supported():
    dtype = torch.bfloat16
else:
    dtype = torch.float16
""",
    ),
    (
        "bf16: names of dtypes",
        "a.py",
        ["AMP604"],
        """\
import torch
dtype = 'bfloat16' if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 'float16'
""",
    ),
    (
        "bf16: emulation wanted",
        "a.py",
        ["AMP604"],
        """\
import torch
ok = torch.cuda.is_bf16_supported(including_emulation=True)
dtype = torch.bfloat16 if ok else torch.float16
""",
    ),
    (
        "fp8: TransformerEngine",
        "a.py",
        ["AMP605"],
        """\
import transformer_engine.pytorch as te
from transformer_engine.common.recipe import DelayedScaling, Format
r = DelayedScaling(fp8_format=Format.HYBRID)
with te.fp8_autocast(enabled=True, fp8_recipe=r):
    out = layer(x)
""",
    ),
    (
        "fp8: program",
        "a.py",
        ["AMP605"],
        """\
import torch
from torchao.float8 import convert_to_float8_training
def main():
    m = model.to(torch.bfloat16).cuda()
    convert_to_float8_training(m, module_filter_fn=f)
    loss = m(x).sum(); loss.backward()
if __name__ == "__main__":
    main()
""",
    ),
    (
        "einsum: forward",
        "a.py",
        ["AMP606"],
        """\
import torch
class A(torch.nn.Module):
    def forward(self, a, b, c):
        return torch.einsum("bij,bjk,bkl->bil", a, b, c)
m = A().cuda()
with torch.autocast("cuda", dtype=torch.float16):
    y = m(a, b, c)
""",
    ),
    (
        "einsum: decorator",
        "a.py",
        ["AMP606"],
        """\
import torch
@torch.autocast("cuda")
def f(a, b, c):
    return torch.einsum("i,ij,j", a, b, c)
""",
    ),
]


@pytest.mark.parametrize(("path", "expected", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_spelling(path: str, expected: list[str], text: str) -> None:
    assert codes(path, text) == expected


def severities(text: str) -> list[tuple[str, str]]:
    """Rule and severity of each finding."""
    return [(finding.rule, str(finding.severity)) for finding in check_text("a.py", text, RULES)]


@pytest.mark.parametrize(
    ("precision", "severity"),
    [('mixed_precision="fp16"', "error"), ("", "warning"), ("mixed_precision=mode", "warning")],
)
def test_clip_beside_accelerator_is_certain_with_fp16_alone(precision: str, severity: str) -> None:
    text = f"""\
import torch
from accelerate import Accelerator

accelerator = Accelerator({precision})
accelerator.backward(loss)
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
"""
    assert severities(text) == [("AMP506", severity)]


@pytest.mark.parametrize(
    ("use", "severity"),
    [
        ("dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16", "warning"),
        ("options = {'bf16': torch.cuda.is_bf16_supported()}", "warning"),
        ("known = torch.cuda.is_bf16_supported()", "info"),
        ("if not torch.cuda.is_bf16_supported():\n    raise RuntimeError('no bf16')", "info"),
    ],
)
def test_bf16_support_matters_where_it_chooses(use: str, severity: str) -> None:
    assert severities(f"import torch\n\n{use}\n") == [("AMP604", severity)]


def test_fp8_in_a_module_that_others_call_is_info() -> None:
    text = "from torchao.float8 import convert_to_float8_training\n\ndef f(m):\n    convert_to_float8_training(m)\n"
    assert severities(text) == [("AMP605", "info")]
    assert severities(text + "\nf(model)\nloss.backward()\n") == [("AMP605", "warning")]


def test_precision_for_lightning_1_is_info() -> None:
    text = "import pytorch_lightning as pl\n\npl.Trainer(gpus=1, precision=16)\npl.Trainer(devices=1, precision=16)\n"
    assert severities(text) == [("AMP505", "info"), ("AMP505", "warning")]
