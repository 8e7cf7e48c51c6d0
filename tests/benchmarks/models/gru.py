"""A speech recogniser: two convolutions, three bidirectional GRU layers (512 wide), 32 spectrograms of 800 frames."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, FRAMES, BANDS, WIDTH, LETTERS = 32, 800, 80, 512, 29


class Recogniser(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, 32, (11, 5), stride=(2, 2), padding=(5, 2)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20),
            nn.Conv2d(32, 32, (11, 5), stride=(1, 2), padding=(5, 2)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20),
        )  # fmt: skip
        self.gru = nn.GRU(32 * BANDS // 4, WIDTH, num_layers=3, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, LETTERS)

    def forward(self, x):
        y = self.front(x[:, None])
        y, _ = self.gru(y.permute(0, 2, 1, 3).flatten(2))
        return self.head(self.norm(y))


def make_model():
    return Recogniser()


def make_batch():
    return torch.randn(BATCH, FRAMES, BANDS), torch.randint(0, LETTERS, (BATCH, FRAMES // 2))


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
