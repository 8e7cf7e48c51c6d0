"""Keywords from log-mel features that are worked out in the model. Planted: the mel bands are a product, which
autocast takes in 16 bits, of a power spectrum that goes beyond FP16 for loud tones."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def mel_bands(count, bins, rate):
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), count + 2) / 2595) - 1)
    centre = torch.linspace(0, rate / 2, bins)
    up = (centre - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - centre) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(up, down).clamp(min=0)


class Keywords(nn.Module):
    def __init__(self, rate=16000, size=1024, bands=64, classes=32):
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size))
        self.register_buffer("bands", mel_bands(bands, size // 2 + 1, rate))
        self.net = nn.Sequential(
            nn.Conv1d(bands, 128, 5, 2, 2), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 128, 5, 2, 2),
            nn.BatchNorm1d(128), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, classes),
        )  # fmt: skip

    def forward(self, wave):
        spectrum = torch.stft(wave, self.size, self.size // 4, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = self.bands @ power  # planted: G201
        return self.net(torch.log(mel.float() + 1e-6))


def make_model():
    return Keywords()


def make_batch():
    time = torch.arange(16000) / 16000
    pitch = 200 + 1800 * torch.rand(16, 1)
    wave = torch.sin(2 * torch.pi * pitch * time) * torch.linspace(0.1, 1.0, 16)[:, None]
    return {"wave": wave, "word": torch.randint(0, 32, (16,))}


def loss_fn(output, batch):
    return F.cross_entropy(output, batch["word"])
