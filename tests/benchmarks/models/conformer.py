"""A Conformer speech recogniser trained with CTC: 12 blocks of width 512, relative-position attention by plain
products, gated depthwise convolutions over time; 32 spectrograms of 1200 frames."""

import math

import torch
import torch.nn.functional as F
from torch import nn

BATCH, FRAMES, BANDS, LETTERS, TRANSCRIPT = 32, 1200, 80, 128, 96
WIDTH, HEADS, DEPTH, KERNEL = 512, 8, 12, 31


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.drop(self.down(self.drop(F.silu(self.up(self.norm(x))))))


class RelativeAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.position = nn.Linear(width, width, bias=False)
        self.bias_u, self.bias_v = (nn.Parameter(torch.zeros(HEADS, width // HEADS)) for _ in range(2))
        self.drop = nn.Dropout(0.1)

    def forward(self, x, positions):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, HEADS, c // HEADS).unbind(2)
        p = self.position(positions).view(-1, HEADS, c // HEADS)
        content = torch.einsum("bihd,bjhd->bhij", q + self.bias_u, k)
        shifted = torch.einsum("bihd,phd->bhip", q + self.bias_v, p)
        shifted = F.pad(shifted, (1, 0)).view(b, HEADS, -1, t)[:, :, 1:].view(b, HEADS, t, -1)[..., :t]
        weights = self.drop(((content + shifted) / math.sqrt(c // HEADS)).softmax(-1))
        return self.drop(self.out(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, t, c)))


class Convolution(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.out = nn.Conv1d(width, width, 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        y = F.glu(self.gate(self.norm(x).transpose(1, 2)), dim=1)
        return self.drop(self.out(F.silu(self.batch_norm(self.depthwise(y)))).transpose(1, 2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.attend = FeedForward(width), RelativeAttention(width)
        self.convolve, self.second, self.norm = Convolution(width), FeedForward(width), nn.LayerNorm(width)

    def forward(self, x, positions):
        x = x + 0.5 * self.first(x)
        x = x + self.attend(x, positions)
        x = x + self.convolve(x)
        return self.norm(x + 0.5 * self.second(x))


class Conformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(1, WIDTH // 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(WIDTH // 2, WIDTH // 2, 3, 2, 1), nn.ReLU()
        )
        self.project = nn.Linear(WIDTH // 2 * BANDS // 4, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, LETTERS)

    def forward(self, x):
        x = self.project(self.front(x[:, None]).permute(0, 2, 1, 3).flatten(2))
        distances = torch.arange(x.shape[1] - 1, -x.shape[1], -1, device=x.device)
        rates = torch.exp(torch.arange(0, WIDTH, 2, device=x.device) * (-math.log(10000.0) / WIDTH))
        angles = distances[:, None] * rates
        positions = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        for block in self.blocks:
            x = block(x, positions)
        return self.head(x)


def make_model():
    return Conformer()


def make_batch():
    return torch.randn(BATCH, FRAMES, BANDS), torch.randint(1, LETTERS, (BATCH, TRANSCRIPT))


def loss_fn(output, batch):
    frames, letters = (output.shape[1],) * output.shape[0], (batch[1].shape[1],) * output.shape[0]
    return F.ctc_loss(output.log_softmax(-1).transpose(0, 1), batch[1], frames, letters)
