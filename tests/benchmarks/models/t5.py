"""T5-small as in transformers, batch 32: 512 tokens in, 128 out."""

import torch
from transformers import T5Config, T5ForConditionalGeneration


def make_model():
    return T5ForConditionalGeneration(T5Config(use_cache=False, decoder_start_token_id=0))


def make_batch():
    return {"input_ids": torch.randint(1, 32000, (32, 512)), "labels": torch.randint(1, 32000, (32, 128))}
