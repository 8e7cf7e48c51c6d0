"""Mimi, the audio codec of transformers, from a small configuration. Careful."""

import torch
import torch.nn.functional as F
from transformers import MimiConfig, MimiModel


def make_model():
    return MimiModel(
        MimiConfig(
            hidden_size=256,
            num_filters=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=64,
            intermediate_size=512,
            codebook_size=512,
            codebook_dim=128,
            vector_quantization_hidden_dimension=128,
            num_quantizers=8,
            num_semantic_quantizers=1,
            upsample_groups=256,
            sliding_window=125,
        )
    )


def make_batch():
    return {"input_values": torch.randn(4, 1, 24000) * 0.1}


def loss_fn(output, batch):
    return F.l1_loss(output.audio_values, batch["input_values"])
