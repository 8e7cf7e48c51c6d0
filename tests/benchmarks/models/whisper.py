"""Whisper-base as in transformers, 16 recordings of 30 s, 224 tokens each."""

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

BATCH, FRAMES, TOKENS, LAYERS = 16, 3000, 224, 6


def make_model():
    return WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=51865, d_model=512, encoder_layers=LAYERS, decoder_layers=LAYERS,
                      encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048,
                      decoder_ffn_dim=2048, max_source_positions=FRAMES // 2, use_cache=False)
    )  # fmt: skip


def make_batch():
    return {"input_features": torch.randn(BATCH, 80, FRAMES), "labels": torch.randint(0, 50000, (BATCH, TOKENS))}
