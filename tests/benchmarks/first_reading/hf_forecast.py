"""PatchTSMixer of transformers for forecasting, from a configuration of seven channels. Careful."""

import torch
from transformers import PatchTSMixerConfig, PatchTSMixerForPrediction


def make_model():
    return PatchTSMixerForPrediction(
        PatchTSMixerConfig(
            context_length=512,
            prediction_length=96,
            patch_length=16,
            patch_stride=16,
            num_input_channels=7,
            d_model=64,
            num_layers=4,
            mode="mix_channel",
            scaling="std",
        )
    )


def make_batch():
    return {"past_values": torch.randn(64, 512, 7).cumsum(1), "future_values": torch.randn(64, 96, 7)}


def loss_fn(output, batch):
    return output.loss
