"""Qwen3 0.6B as in transformers: grouped keys with norms of queries and keys, a head tied to 151,936 embeddings; batch
2 x 2048."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

BATCH, LENGTH, WORDS, WIDTH, HIDDEN, HEADS, GROUPS, SIDE, LAYERS = 2, 2048, 151936, 1024, 3072, 16, 8, 128, 28


def make_model():
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=SIDE, tie_word_embeddings=True,
                    max_position_embeddings=LENGTH, use_cache=False)
    )  # fmt: skip


def make_batch():
    ids = torch.randint(0, WORDS, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}
