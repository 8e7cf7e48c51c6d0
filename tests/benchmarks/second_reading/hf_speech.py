"""Whisper of transformers, from a small configuration. Careful."""

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration


def make_model():
    config = WhisperConfig(
        vocab_size=4096,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=256,
        max_target_positions=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config)


def make_batch():
    return {"input_features": torch.randn(4, 80, 512), "labels": torch.randint(3, 4096, (4, 64))}
