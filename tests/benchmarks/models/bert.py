"""BERT-base masked language model as in transformers, batch 32 x 512."""

import torch
from transformers import BertConfig, BertForMaskedLM

VOCAB = 30522


def make_model(vocab=VOCAB):
    return BertForMaskedLM(BertConfig(vocab_size=vocab))


def make_batch():
    ids = torch.randint(0, 30000, (32, 512))
    return {"input_ids": ids, "labels": ids}
