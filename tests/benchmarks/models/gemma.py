"""A small Gemma 2 as in transformers: gated GELU, soft caps on scores and logits, sliding windows; batch 2 x 2048."""

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

BATCH, LENGTH, WORDS, WIDTH, HIDDEN, HEADS, GROUPS, LAYERS, WINDOW = 2, 2048, 32000, 1536, 6144, 6, 3, 6, 1024


def make_model():
    return Gemma2ForCausalLM(
        Gemma2Config(vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
                     num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=256, sliding_window=WINDOW,
                     use_cache=False)
    )  # fmt: skip


def make_batch():
    ids = torch.randint(3, WORDS, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}
