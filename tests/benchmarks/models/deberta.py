"""DeBERTa-v3-base masked language model as in transformers, batch 16 x 512."""

import torch
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

BATCH, LENGTH, LAYERS = 16, 512, 12


def make_model():
    return DebertaV2ForMaskedLM(
        DebertaV2Config(vocab_size=128100, hidden_size=768, num_hidden_layers=LAYERS, num_attention_heads=12,
                        intermediate_size=3072, max_position_embeddings=512, relative_attention=True,
                        position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
                        pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0)
    )  # fmt: skip


def make_batch():
    ids = torch.randint(0, 128000, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}
