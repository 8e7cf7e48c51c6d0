"""A vocoder of transposed convolutions with losses on several spectrograms. Careful: the window is FP32 and promotes
the wave before the FFT, magnitudes have an eps under their root and a floor under their logarithm."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


class Dilated(nn.Module):
    def __init__(self, width, dilations=(1, 3, 5)):
        super().__init__()
        self.first = nn.ModuleList(weight_norm(nn.Conv1d(width, width, 3, padding=d, dilation=d)) for d in dilations)
        self.second = nn.ModuleList(weight_norm(nn.Conv1d(width, width, 3, padding=1)) for _ in dilations)

    def forward(self, x):
        for a, b in zip(self.first, self.second, strict=True):
            x = x + b(F.leaky_relu(a(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Vocoder(nn.Module):
    def __init__(self, mels=80, width=256, rates=(8, 8, 4)):
        super().__init__()
        self.stem = weight_norm(nn.Conv1d(mels, width, 7, padding=3))
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate in rates:
            self.ups.append(weight_norm(nn.ConvTranspose1d(width, width // 2, 2 * rate, rate, padding=rate // 2)))
            width //= 2
            self.blocks.append(Dilated(width))
        self.out = weight_norm(nn.Conv1d(width, 1, 7, padding=3))

    def forward(self, mel):
        x = self.stem(mel)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(up(F.leaky_relu(x, 0.1)))
        return torch.tanh(self.out(F.leaky_relu(x, 0.1))).squeeze(1)


def magnitude(wave, size):
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-7)


def make_model():
    return Vocoder()


def make_batch():
    return torch.randn(16, 80, 32), torch.randn(16, 8192).clamp(-1, 1)


def loss_fn(wave, batch):
    total = F.l1_loss(wave, batch[1])
    for size in (512, 1024, 2048):
        a, b = magnitude(wave, size), magnitude(batch[1], size)
        convergence = (b - a).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1).clamp(min=1e-5)
        total = total + convergence.mean() + F.l1_loss(a.clamp(min=1e-5).log(), b.clamp(min=1e-5).log())
    return total
