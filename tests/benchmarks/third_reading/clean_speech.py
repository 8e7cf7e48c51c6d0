"""Speech enhancement in the time domain (Conv-TasNet), scale-invariant loss. Planted: the estimate is normalised by its
energy in 16 bits with an eps of 1e-8, which FP16 does not have."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, n, inner, dilation):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(n, inner, 1), nn.PReLU(), nn.GroupNorm(1, inner),
            nn.Conv1d(inner, inner, 3, padding=dilation, dilation=dilation, groups=inner), nn.PReLU(),
            nn.GroupNorm(1, inner), nn.Conv1d(inner, n, 1),
        )  # fmt: skip

    def forward(self, x):
        return x + self.net(x)


class Enhancer(nn.Module):
    def __init__(self, filters=256, n=128, inner=256):
        super().__init__()
        self.encode = nn.Conv1d(1, filters, 16, 8, bias=False)
        self.narrow = nn.Conv1d(filters, n, 1)
        self.blocks = nn.Sequential(*[Block(n, inner, 2**i) for i in range(6)])
        self.mask = nn.Sequential(nn.Conv1d(n, filters, 1), nn.Sigmoid())
        self.decode = nn.ConvTranspose1d(filters, 1, 16, 8, bias=False)

    def forward(self, noisy):
        w = self.encode(noisy[:, None])
        made = self.decode(w * self.mask(self.blocks(self.narrow(w)))).squeeze(1)
        energy = (made * made).mean(-1, keepdim=True)
        return made / (energy + 1e-8)  # planted: G205


def make_model():
    return Enhancer()


def make_batch():
    return torch.randn(8, 16000), torch.randn(8, 16000)


def loss_fn(made, batch):
    made, clean = made.float(), batch[1]
    scale = (made * clean).sum(-1, keepdim=True) / (clean * clean).sum(-1, keepdim=True)
    wanted = scale * clean
    ratio = wanted.pow(2).sum(-1) / ((made - wanted).pow(2).sum(-1) + 1e-6)
    return -10 * torch.log10(ratio + 1e-6).mean()
