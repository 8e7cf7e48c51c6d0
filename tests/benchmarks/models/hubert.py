"""HuBERT-base as in transformers, sorting recordings by command: 16 waveforms of 8 s at 16 kHz."""

import torch
from transformers import HubertConfig, HubertForSequenceClassification

BATCH, SAMPLES, LAYERS, COMMANDS = 16, 128_000, 12, 12


def make_model():
    return HubertForSequenceClassification(HubertConfig(num_hidden_layers=LAYERS, layerdrop=0.0, num_labels=COMMANDS))


def make_batch():
    return {"input_values": torch.randn(BATCH, SAMPLES), "labels": torch.randint(0, COMMANDS, (BATCH,))}
