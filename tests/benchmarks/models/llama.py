"""Llama of 0.6 B parameters (2048 wide, 8192 in the MLP, 8 layers) as in transformers, batch 4 x 2048."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make_model():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=8, num_attention_heads=16,
                    num_key_value_heads=16, vocab_size=32000, tie_word_embeddings=True, use_cache=False)
    )  # fmt: skip


def make_batch():
    ids = torch.randint(0, 30000, (4, 2048))
    return {"input_ids": ids, "labels": ids}
