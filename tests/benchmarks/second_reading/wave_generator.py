"""A GAN vocoder: transposed convolutions under weight_norm, residual dilated stacks, mel loss with a clamped logarithm.
Careful."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

MELS, HOP = 80, 64


class Stack(nn.Module):
    def __init__(self, channels, taps, dilations=(1, 3, 5)):
        super().__init__()
        self.wide = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, taps, dilation=d, padding=(taps - 1) * d // 2)) for d in dilations
        )
        self.narrow = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, taps, padding=taps // 2)) for _ in dilations
        )

    def forward(self, x):
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = x + narrow(F.leaky_relu(wide(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Generator(nn.Module):
    def __init__(self, width=256, rates=(8, 8)):
        super().__init__()
        self.first = weight_norm(nn.Conv1d(MELS, width, 7, padding=3))
        self.ups, self.stacks = nn.ModuleList(), nn.ModuleList()
        for at, rate in enumerate(rates):
            inner, outer = width >> at, width >> (at + 1)
            self.ups.append(weight_norm(nn.ConvTranspose1d(inner, outer, 2 * rate, rate, padding=rate // 2)))
            self.stacks.append(nn.ModuleList(Stack(outer, taps) for taps in (3, 7)))
        self.last = weight_norm(nn.Conv1d(width >> len(rates), 1, 7, padding=3))

    def forward(self, mel):
        x = self.first(mel)
        for up, stacks in zip(self.ups, self.stacks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = sum(stack(x) for stack in stacks) / len(stacks)
        return torch.tanh(self.last(F.leaky_relu(x))).squeeze(1)


def make_model():
    return Generator()


def make_batch():
    return torch.randn(16, MELS, 64) - 4, torch.rand(16, 64 * HOP) * 1.6 - 0.8


def log_mel(wave):
    window = torch.hann_window(512, device=wave.device)
    spectrum = torch.stft(wave.float(), 512, HOP, window=window, return_complex=True)
    return torch.log(spectrum.abs().clamp(min=1e-5))


def loss_fn(wave, batch):
    return 45 * F.l1_loss(log_mel(wave), log_mel(batch[1]))
