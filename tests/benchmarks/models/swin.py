"""Swin-tiny as in transformers, 64 images of 224 x 224."""

import torch
import torch.nn.functional as F
from transformers import SwinConfig, SwinForImageClassification

BATCH, SIDE = 64, 224


def make_model():
    return SwinForImageClassification(SwinConfig(num_labels=1000, image_size=SIDE))


def make_batch():
    return torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 1000, (BATCH,))


def loss_fn(output, batch):
    return F.cross_entropy(output.logits, batch[1])
