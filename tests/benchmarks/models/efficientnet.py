"""EfficientNet-B0 as in transformers, 64 images of 224 x 224."""

import torch
import torch.nn.functional as F
from transformers import EfficientNetConfig, EfficientNetForImageClassification

BATCH, SIDE = 64, 224


def make_model():
    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, image_size=SIDE, hidden_dim=1280, dropout_rate=0.2
    )
    config.num_labels = 1000
    return EfficientNetForImageClassification(config)


def make_batch():
    return torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 1000, (BATCH,))


def loss_fn(output, batch):
    return F.cross_entropy(output.logits, batch[1])
