"""Trainers and their settings files (AMP501 to AMP505), in spellings beyond the rules' own examples."""

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
        "trainer: dict through two stars",
        "a.py",
        ["AMP501"],
        """\
import transformers as tf
kw = dict(fp16=True, bf16=True)
a = tf.Seq2SeqTrainingArguments(output_dir="x", **kw)
""",
    ),
    (
        "trainer: one constant for both",
        "a.py",
        ["AMP501"],
        """\
from transformers import HfArgumentParser, TrainingArguments
FP16 = True
def get_args():
    return TrainingArguments("o", bf16=FP16, fp16=FP16)
""",
    ),
    (
        "trainer: trl, folded",
        "a.py",
        ["AMP501"],
        """\
from trl import DPOConfig
args = DPOConfig(output_dir="o", fp16=not False, bf16=True)
""",
    ),
    (
        "trainer: compared with a name",
        "a.py",
        [],
        """\
from transformers import TrainingArguments
def f(x):
    return TrainingArguments("o", bf16=x == "bf16", fp16=x == "fp16")
""",
    ),
    (
        "trainer: JSON section",
        "c.json",
        ["AMP501"],
        """\
{"training": {"fp16": true, "bf16": true}}
""",
    ),
    (
        "trainer: YAML of a training tool",
        "axolotl.yml",
        ["AMP501"],
        """\
base_model: x
micro_batch_size: 2
bf16: true
fp16: true
""",
    ),
    (
        "trainer: auto in YAML",
        "axolotl.yml",
        [],
        """\
base_model: x
micro_batch_size: 2
bf16: auto
fp16:
tf32: false
""",
    ),
    (
        "removed: dict through two stars",
        "a.py",
        ["AMP502"],
        """\
from transformers import TrainingArguments
kw = {"half_precision_backend": "apex"}
a = TrainingArguments("o", **kw)
""",
    ),
    (
        "removed: read from the object",
        "a.py",
        ["AMP502"],
        """\
from transformers import TrainingArguments
args = TrainingArguments("o")
if args.fp16_opt_level == "O1":
    pass
""",
    ),
    (
        "removed: getattr with a default",
        "a.py",
        [],
        """\
from transformers import TrainingArguments
args = TrainingArguments("o")
x = getattr(args, "fp16_opt_level", "O1")
""",
    ),
    (
        "deepspeed: dict calls",
        "a.py",
        ["AMP503"],
        """\
import deepspeed
ds_config = dict(
    train_batch_size=8,
    fp16=dict(enabled=True),
    bf16=dict(enabled=True),
)
""",
    ),
    (
        "deepspeed: stored one by one",
        "a.py",
        ["AMP503"],
        """\
import json
cfg = {"train_batch_size": 8}
cfg["fp16"] = {"enabled": True}
cfg["bf16"] = {"enabled": True}
""",
    ),
    (
        "deepspeed: torch_autocast",
        "d.json",
        [],
        """\
{"train_batch_size": 1, "fp16": {"enabled": true}, "torch_autocast": {"enabled": true}}
""",
    ),
    (
        "deepspeed: amp",
        "d.json",
        ["AMP503"],
        """\
{"bf16": {"enabled": true}, "amp": {"enabled": true}}
""",
    ),
    (
        "deepspeed: strings that conflict",
        "d.json",
        ["AMP503", "AMP504"],
        """\
{"bf16": {"enabled": "true"}, "fp16": {"enabled": "true"}}
""",
    ),
    (
        "deepspeed: capital string",
        "d.json",
        ["AMP504"],
        """\
{"fp16": {"enabled": "True", "loss_scale": 0}}
""",
    ),
    (
        "deepspeed: string in dict call",
        "a.py",
        ["AMP504"],
        """\
import deepspeed
conf = dict(fp16=dict(enabled="false"))
""",
    ),
    (
        "deepspeed: auto",
        "d.json",
        [],
        """\
{"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}
""",
    ),
    (
        "lightning: bf16",
        "a.py",
        ["AMP505"],
        """\
import pytorch_lightning as pl
trainer = pl.Trainer(accelerator="gpu", devices=1, precision="bf16", max_epochs=3)
""",
    ),
    (
        "lightning: through a name",
        "a.py",
        ["AMP505"],
        """\
from pytorch_lightning import Trainer
def main(hparams):
    p = 16 if hparams.amp else 32
    return Trainer(precision=p)
""",
    ),
    (
        "lightning: removed",
        "a.py",
        ["AMP505"],
        """\
from lightning.pytorch import Trainer
class T(Trainer): pass
t = Trainer(amp_level="O2", amp_backend="apex")
""",
    ),
    (
        "lightning: command line",
        "a.py",
        ["AMP505"],
        """\
from pytorch_lightning.cli import LightningCLI
cli = LightningCLI(trainer_defaults={"precision": 16, "max_epochs": 2})
""",
    ),
    (
        "lightning: YAML string",
        "c.yaml",
        ["AMP505"],
        """\
trainer:
  max_epochs: 3
  precision: "16"
""",
    ),
]


@pytest.mark.parametrize(("path", "expected", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_spelling(path: str, expected: list[str], text: str) -> None:
    assert codes(path, text) == expected
