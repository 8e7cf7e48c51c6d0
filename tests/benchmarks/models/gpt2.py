"""GPT-2 124M as in transformers, batch 16 x 1024."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

VOCAB = 50257
BATCH, LENGTH = 16, 1024


def make_model(vocab=VOCAB):
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    )


def make_batch():
    ids = torch.randint(0, 50000, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}
