"""Keyword recognition with the front end in the model: pre-emphasis, STFT, mel bands, a logarithm with a floor, mean
and deviation per utterance, then CTC. Careful: the front end is FP32 outside of autocast, its floor 1e-5."""

import itertools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def mel_bands(n_fft, bands, rate):
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    freqs = torch.linspace(0, rate / 2, n_fft // 2 + 1)
    up = (freqs[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - freqs[None]) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(up, down).clamp(min=0)


class FrontEnd(nn.Module):
    def __init__(self, rate=16000, n_fft=400, hop=160, bands=64):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))
        self.register_buffer("bands", mel_bands(n_fft, bands, rate))

    def forward(self, wave):
        with torch.autocast("cuda", enabled=False):
            wave = wave.float()
            wave = torch.cat([wave[:, :1], wave[:, 1:] - 0.97 * wave[:, :-1]], 1)
            spec = torch.stft(wave, self.n_fft, self.hop, window=self.window, return_complex=True)
            power = spec.real**2 + spec.imag**2
            mel = torch.log(torch.matmul(self.bands, power) + 1e-5)
            mean = mel.mean(-1, keepdim=True)
            std = (mel - mean).pow(2).mean(-1, keepdim=True).add(1e-5).sqrt()
            return (mel - mean) / std


class Words(nn.Module):
    def __init__(self, bands=64, ch=128, symbols=32):
        super().__init__()
        self.front = FrontEnd(bands=bands)
        sizes = (bands, ch, ch, ch)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 9, padding=4) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(ch) for _ in self.convs)
        self.head = nn.Conv1d(ch, symbols, 1)

    def forward(self, wave):
        x = self.front(wave)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.relu(norm(conv(x)))
        return self.head(x).permute(2, 0, 1)


def make_model():
    return Words()


def make_batch():
    return torch.randn(8, 16000) * 0.1, torch.randint(1, 32, (8, 12))


def loss_fn(output, batch):
    logp = F.log_softmax(output.float(), dim=-1)
    t, b = logp.shape[:2]
    lengths = torch.full((b,), t, dtype=torch.long), torch.full((b,), batch[1].shape[1], dtype=torch.long)
    return F.ctc_loss(logp, batch[1], *lengths, zero_infinity=True)
