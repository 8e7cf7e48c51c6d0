"""ConvNeXt-tiny of torchvision with label smoothing."""

import torch
import torch.nn.functional as F
from torchvision.models import convnext_tiny


def make_model():
    return convnext_tiny(num_classes=1000)


def make_batch():
    return torch.randn(64, 3, 224, 224), torch.randint(0, 1000, (64,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1], label_smoothing=0.1)
