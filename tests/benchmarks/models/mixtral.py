"""Mixtral at 0.8 B as in transformers 5: the experts are one parameter, in grouped products; batch 4 x 1024."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

BATCH, LENGTH, WORDS, WIDTH, HIDDEN, HEADS, GROUPS, EXPERTS, LAYERS = 4, 1024, 32000, 1024, 3584, 16, 4, 8, 8


def make_model():
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
                      num_attention_heads=HEADS, num_key_value_heads=GROUPS, num_local_experts=EXPERTS,
                      max_position_embeddings=LENGTH, use_cache=False)
    )  # fmt: skip


def make_batch():
    ids = torch.randint(0, WORDS, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}
