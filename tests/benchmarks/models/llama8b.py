"""Four layers of the shapes of Llama 8B as in transformers, batch 2 x 4096."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make_model():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=4, num_attention_heads=32,
                    num_key_value_heads=8, vocab_size=32000, use_cache=False)
    )  # fmt: skip


def make_batch():
    ids = torch.randint(0, 30000, (2, 4096))
    return {"input_ids": ids, "labels": ids}
