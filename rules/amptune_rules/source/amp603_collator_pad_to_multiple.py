"""AMP603: batches of text are padded to lengths that are no multiple of 8."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import TRAINS, may_train_in_16_bits
from amptune_rules.source._mixed import trains_in_16_bits

_COLLATORS = tuple(
    f"transformers.{name}"
    for name in ("DataCollatorWithPadding", "DataCollatorForTokenClassification", "DataCollatorForSeq2Seq",
                 "DataCollatorForLanguageModeling", "DataCollatorForWholeWordMask")
)  # fmt: skip
_TO_LONGEST = (True, "longest")


class CollatorPadToMultiple(SourceRule):
    """A collator pads to the longest text of a batch, without pad_to_multiple_of, in 16-bit training.

    ## What it does
    In files that train in fp16 or bf16, flags the padding collators of transformers, and `tokenizer(..., padding=True)`
    or `tokenizer.pad(...)` in a collate function, without `pad_to_multiple_of`.

    ## Why is this bad
    The sequence length is a dimension of every matmul of the attention and of the weight gradients. Lengths such as
    511 are not aligned for the tensor cores, and every new length is a new shape for autotuners and torch.compile;
    padding to multiples of 8 adds 3.5 tokens on average.

    ## Example
    ```python
    from transformers import DataCollatorWithPadding, TrainingArguments
    args = TrainingArguments("out", bf16=True)
    collator = DataCollatorWithPadding(tokenizer)
    ```

    ## Use instead
    ```python
    from transformers import DataCollatorWithPadding, TrainingArguments
    args = TrainingArguments("out", bf16=True)
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    ```

    ## Fix safety
    Safe: the padding is masked as before.

    ## References
    - https://huggingface.co/docs/transformers/main_classes/data_collator
    - https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html
    """

    code = "AMP603"
    name = "collator-pad-to-multiple"
    severity = Severity.INFO
    keywords = (b"DataCollator", b"collat")
    requires = (b"okenizer", TRAINS)

    INVALID = (
        Example(
            "a collator of transformers",
            """\
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

def make(tokenizer, model):
    args = Seq2SeqTrainingArguments("out", fp16=True)
    return args, DataCollatorForSeq2Seq(tokenizer, model=model)  # <- AMP603@18
""",
            fixed="""\
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

def make(tokenizer, model):
    args = Seq2SeqTrainingArguments("out", fp16=True)
    return args, DataCollatorForSeq2Seq(tokenizer, model=model, pad_to_multiple_of=8)
""",
        ),
        Example(
            "a collate function",
            """\
from accelerate import Accelerator
from transformers import AutoTokenizer

accelerator = Accelerator(mixed_precision="bf16")
tokenizer = AutoTokenizer.from_pretrained("bert-base-cased")

def collate_fn(examples):
    return tokenizer.pad(examples, padding="longest", return_tensors="pt")  # <- AMP603@12

def collate_texts(texts):
    return tokenizer(texts, padding=True, truncation=True)  # <- AMP603@12
""",
            fixed="""\
from accelerate import Accelerator
from transformers import AutoTokenizer

accelerator = Accelerator(mixed_precision="bf16")
tokenizer = AutoTokenizer.from_pretrained("bert-base-cased")

def collate_fn(examples):
    return tokenizer.pad(examples, padding="longest", return_tensors="pt", pad_to_multiple_of=8)

def collate_texts(texts):
    return tokenizer(texts, padding=True, truncation=True, pad_to_multiple_of=8)
""",
        ),
    )
    VALID = (
        Example(
            "said already",
            """\
from transformers import DataCollatorWithPadding, TrainingArguments

def make(tokenizer):
    args = TrainingArguments("out", fp16=True)
    return args, DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if args.fp16 else None)
""",
        ),
        Example(
            "a fixed length",
            """\
from transformers import DataCollatorWithPadding, TrainingArguments

def make(tokenizer):
    args = TrainingArguments("out", bf16=True)
    return args, DataCollatorWithPadding(tokenizer, padding="max_length", max_length=512)
""",
        ),
        Example(
            "float32",
            """\
from transformers import DataCollatorWithPadding, TrainingArguments

def make(tokenizer):
    return TrainingArguments("out"), DataCollatorWithPadding(tokenizer)
""",
        ),
        Example(
            "texts that are padded outside of training, and settings that are not seen",
            """\
from transformers import DataCollatorWithPadding, TrainingArguments

def make(tokenizer, **options):
    return TrainingArguments("out", bf16=True), DataCollatorWithPadding(tokenizer, **options)

def predict(model, tokenizer, texts):
    return model(**tokenizer(texts, padding=True, return_tensors="pt"))  # no collator
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return may_train_in_16_bits(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Collators, and tokenizers in collate functions."""
        calls = [call for call in source.calls(*_COLLATORS) if _pads_to_longest(source, call, True)]
        calls += [call for call in _tokenizer_calls(source) if _is_collating(source, call)]
        if not calls or not trains_in_16_bits(source):
            return
        for call in calls:
            message = "pads to the longest text, whatever its length: add pad_to_multiple_of=8 for 16-bit matmuls"
            fix = Fix("add pad_to_multiple_of=8", (edits.add_argument(source, call, "pad_to_multiple_of=8"),))
            yield source.finding(self, call, message, fix=fix)


def _pads_to_longest(source: SourceFile, call: ast.Call, default: bool) -> bool:
    """Whether the call pads to the longest text of the batch, and says nothing of a multiple."""
    if source.has_splat(call) or source.argument(call, "pad_to_multiple_of") is not None:
        return False
    if source.argument(call, "mlm") is None and any(
        n.endswith("LanguageModeling") for n in source.qualified(call.func)
    ):
        return len(call.args) <= 1  # positional arguments: the third one may be pad_to_multiple_of
    padding = source.argument(call, "padding")
    return default if padding is None else source.constant(padding) in _TO_LONGEST


def _tokenizer_calls(source: SourceFile) -> Iterator[ast.Call]:
    """Calls of what is called a tokenizer, and of its ``pad``, which pads unless it is told not to."""
    for call in source.nodes(ast.Call):
        func = call.func
        if not isinstance(func, ast.Name | ast.Attribute):
            continue
        is_pad = isinstance(func, ast.Attribute) and func.attr == "pad"
        name = func.value if isinstance(func, ast.Attribute) and is_pad else func
        if _word(name).endswith("tokenizer") and _pads_to_longest(source, call, default=is_pad):
            yield call


def _word(func: ast.expr) -> str:
    """The last identifier of a name, in small letters."""
    return last_name(func).lower()


def _is_collating(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call is in a collate function or the class of a collator."""
    function, cls = source.function_of(call), source.class_of(call)
    names = [item.name.lower() for item in (function, cls) if item is not None]
    return any("collat" in name for name in names)
