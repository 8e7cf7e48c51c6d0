"""PatchTST as in transformers, forecasting 321 meters on their own: patches of 512 hours, 96 hours ahead; batch 32."""

import torch
from transformers import PatchTSTConfig, PatchTSTForPrediction

BATCH, METERS, PAST, AHEAD, WIDTH, HIDDEN, HEADS, LAYERS = 32, 321, 512, 96, 128, 256, 16, 3


def make_model():
    return PatchTSTForPrediction(
        PatchTSTConfig(num_input_channels=METERS, context_length=PAST, prediction_length=AHEAD, patch_length=16,
                       patch_stride=8, d_model=WIDTH, ffn_dim=HIDDEN, num_attention_heads=HEADS,
                       num_hidden_layers=LAYERS, dropout=0.2, head_dropout=0.2, scaling="std", loss="mse")
    )  # fmt: skip


def make_batch():
    return {"past_values": torch.randn(BATCH, PAST, METERS), "future_values": torch.randn(BATCH, AHEAD, METERS)}
