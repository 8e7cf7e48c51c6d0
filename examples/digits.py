"""A small convolutional network with BatchNorm on scikit-learn's 1,797 handwritten digits (8 x 8 pixels).

The data comes with scikit-learn; nothing is downloaded.

    amptune tune examples/digits.py --budget 12
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

NUM_TRAIN = 1_500
BATCH_SIZE = 128


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class DigitsNet(nn.Module):
    """Images (batch, 1, 8, 8) in [0, 1] -> logits (batch, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = ConvBlock(1, width)
        self.block1 = ConvBlock(width, 2 * width)
        self.block2 = ConvBlock(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.block1(self.stem(images)), 2)
        return self.head(self.block2(x).mean(dim=(2, 3)))


@functools.cache
def _data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(digits.target)[order]


def make_model() -> nn.Module:
    return DigitsNet()


def train_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of the training part, reshuffled each epoch by a fixed seed."""
    images, labels = _data()
    generator = torch.Generator().manual_seed(1)
    while True:
        for rows in torch.randperm(NUM_TRAIN, generator=generator).split(BATCH_SIZE)[:-1]:
            yield images[rows], labels[rows]


def make_batch() -> tuple[Tensor, Tensor]:
    return next(train_batches())


def loss_fn(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch[1])


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    """Accuracy on the digits that were held back, in percent."""
    images, labels = _data()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    predicted = model(images[NUM_TRAIN:].to(device)).argmax(dim=-1).cpu()
    model.train(was_training)
    return 100 * (predicted == labels[NUM_TRAIN:]).float().mean().item()
