"""A vocoder that predicts magnitudes and phases of a short-time spectrum (as Vocos does). Planted: the complex
spectrum is made by torch.polar from an FP32 magnitude (exp) and a 16-bit phase under autocast: it takes two floats of
one kind."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ConvNeXt1d(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dw = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up, self.down = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.125))

    def forward(self, x):
        h = self.norm(self.dw(x).transpose(1, 2))
        h = self.scale * self.down(F.gelu(self.up(h)))
        return x + h.transpose(1, 2)


class SpectrumHead(nn.Module):
    def __init__(self, dim, n_fft=512, hop=128):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.out = nn.Linear(dim, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, x):
        mag, phase = self.out(x.transpose(1, 2)).transpose(1, 2).chunk(2, dim=1)
        mag = torch.exp(mag).clamp(max=1e2)
        spectrum = torch.polar(mag, phase)  # planted: G301|G401|G403
        return torch.istft(spectrum, self.n_fft, self.hop, window=self.window)


class Vocoder(nn.Module):
    def __init__(self, mels=80, dim=192, depth=3):
        super().__init__()
        self.embed = nn.Conv1d(mels, dim, 7, padding=3)
        self.blocks = nn.Sequential(*(ConvNeXt1d(dim) for _ in range(depth)))
        self.head = SpectrumHead(dim)

    def forward(self, mel):
        return self.head(self.blocks(self.embed(mel)))


def make_model():
    return Vocoder()


def make_batch():
    return torch.randn(4, 80, 65), torch.randn(4, 8192)


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])
