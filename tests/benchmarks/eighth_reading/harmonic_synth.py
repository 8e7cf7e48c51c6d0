"""Notes synthesised from pitch and loudness: a sum of harmonics and filtered noise (DDSP), the whole in BF16.
Planted: the phase is a running sum of 4096 steps in BF16, which stops where a step is under half a digit."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def exp_sigmoid(x, top=2.0, floor=1e-7):
    return top * torch.sigmoid(x.float()) ** math.log(10.0) + floor


class Controls(nn.Module):
    def __init__(self, hidden, harmonics, bands):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.amps, self.noise = nn.Linear(hidden, harmonics + 1), nn.Linear(hidden, bands)

    def forward(self, pitch, loudness):
        x = torch.stack([torch.log2(pitch / 440.0), loudness / 60.0], dim=-1)
        h, _ = self.rnn(self.first(x.to(self.amps.weight.dtype)))
        return self.amps(h), self.noise(h)


class Synth(nn.Module):
    def __init__(self, hidden=96, harmonics=24, bands=33, hop=64, rate=16000):
        super().__init__()
        self.controls = Controls(hidden, harmonics, bands)
        self.hop, self.rate = hop, rate
        self.register_buffer("order", torch.arange(1, harmonics + 1).float(), persistent=False)

    def upsample(self, x):
        return F.interpolate(x.float().transpose(1, 2), scale_factor=self.hop, mode="linear", align_corners=False)

    def forward(self, pitch, loudness, noise):
        raw, bands = self.controls(pitch, loudness)
        amps = exp_sigmoid(raw)
        total, shares = amps[..., :1], amps[..., 1:]
        audible = (pitch[..., None] * self.order < self.rate / 2).float()
        shares = shares * audible + 1e-6
        shares = shares / shares.sum(-1, keepdim=True)
        amplitude = self.upsample(total * shares)
        step = self.upsample(pitch[..., None]).squeeze(1) / self.rate
        phase = torch.cumsum(step.to(raw.dtype), dim=-1)  # planted: G217
        tones = torch.sin(2 * math.pi * self.order.to(phase.dtype)[:, None] * phase[:, None])
        hiss = noise * self.upsample(exp_sigmoid(bands - 3.0)).mean(1)
        return (amplitude * tones.float()).sum(1) + 0.01 * hiss


def make_model():
    return Synth().bfloat16()


def make_batch():
    pitch = 110.0 * 2 ** (torch.rand(4, 1) * 3 + 0.02 * torch.randn(4, 64))
    loudness = -60.0 * torch.rand(4, 64)
    return (pitch, loudness, torch.randn(4, 4096)), 0.1 * torch.randn(4, 4096)


def loss_fn(output, batch):
    loss = output.new_zeros(())
    for size in (256, 512):
        window = torch.hann_window(size)
        a, b = (torch.stft(x, size, size // 4, window=window, return_complex=True).abs() for x in (output, batch[1]))
        loss = loss + F.l1_loss(a, b) + F.l1_loss(torch.log(a + 1e-4), torch.log(b + 1e-4))
    return loss
