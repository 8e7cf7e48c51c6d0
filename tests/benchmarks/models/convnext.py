"""ConvNeXt-tiny as in transformers, 64 images of 224 x 224."""

import torch
import torch.nn.functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification


def make_model():
    return ConvNextForImageClassification(ConvNextConfig(num_labels=1000))


def make_batch():
    return torch.randn(64, 3, 224, 224), torch.randint(0, 1000, (64,))


def loss_fn(output, batch):
    return F.cross_entropy(output.logits, batch[1])
