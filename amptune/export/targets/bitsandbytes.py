"""bitsandbytes: 4-bit weights (QLoRA) whose compute dtype is the plan's, layer by layer."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import dict_literal, python_file
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import execution_lost, fp8_modules, half_format, listed, modules, stock_autocast

_FILE = """\
import torch
from transformers import BitsAndBytesConfig

DTYPES = {{"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}}
COMPUTE_DTYPE = torch.{dtype}  # of most layers

{table}

def quantization_config():
    \"\"\"For ``from_pretrained(quantization_config=...)``; layers that the plan keeps in FP32 stay unquantised.\"\"\"
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE_DTYPE,
        llm_int8_skip_modules={skip},
    )


def set_compute_dtypes(model):
    \"\"\"Give each Linear4bit of ``model`` the compute dtype that the plan has for it; returns how many were set.

    Call it after from_pretrained and before peft's get_peft_model, which changes the paths.
    \"\"\"
    count = 0
    for path, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = DTYPES[COMPUTE[path]] if path in COMPUTE else COMPUTE_DTYPE
            module.compute_type_is_set = True  # else the first input decides
            count += 1
    return count
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """A BitsAndBytesConfig, and compute dtypes for the layers that differ from most."""
    half = half_format(plan) or Format.FP32
    table = {
        path: site.format.label
        for path, site in modules(plan).items()
        if site.format is not half and not site.format.is_fp8 and site.format is not Format.FP32
    }
    skip = (
        [path for path, site in modules(plan).items() if site.format is Format.FP32] if half is not Format.FP32 else []
    )
    code = _FILE.format(
        dtype=half.torch_name,
        table=dict_literal("COMPUTE", table, "layers that compute in another dtype"),
        skip=_list(skip),
    )
    notes = (
        "4-bit weights are frozen: this is for LoRA on top of them. The adapters' own layers are not in the plan.",
    )
    return python_file(f"bitsandbytes for {model.original}", plan, model, code, lost=_lost(plan), notes=notes)


def _list(paths: list[str]) -> str:
    if not paths:
        return "None"
    lines = "".join(f'            "{path}",\n' for path in paths)
    return f"[\n{lines}        ]"


def _lost(plan: Plan) -> list[Lost]:
    lost = [
        Lost(
            "The plan was measured with full weights; 4-bit ones are another model",
            "Take the compute dtypes from it, not its speed or loss.",
        )
    ]
    fp8 = fp8_modules(plan)
    if fp8:
        lost.append(Lost(f"4-bit layers do not multiply in FP8: {listed(fp8)}", "They compute in BF16."))
    if plan.scaler.enabled:
        lost.append(
            Lost("BitsAndBytesConfig has no loss scaler", "Use the transformers or pytorch target's for FP16 layers.")
        )
    if stock_autocast(plan) is None:
        lost.append(
            Lost(
                "Norms, embeddings and functional ops are not 4-bit layers, so the config does not reach them",
                "They follow from_pretrained's dtype; peft's prepare_model_for_kbit_training raises them to FP32.",
            )
        )
    return [*lost, *execution_lost(plan)]
