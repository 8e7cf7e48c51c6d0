"""Speech enhancement with a loss on instantaneous phases. Careful: atan2 of a spectrum that is exactly zero in digital
silence, whose gradient there torch gives as zero."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Mask(nn.Module):
    def __init__(self, n_fft=256, hop=64, width=128):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))
        bins = n_fft // 2 + 1
        self.inp = nn.Linear(bins, width)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, bins)

    def spectrum(self, wave):
        spec = torch.stft(wave, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        return spec.real.transpose(1, 2), spec.imag.transpose(1, 2)

    def forward(self, wave):
        re, im = self.spectrum(wave)
        level = torch.log1p(re.square() + im.square())
        h, _ = self.rnn(F.relu(self.inp(level)))
        mask = torch.sigmoid(self.out(h)).float()
        return mask * re, mask * im, *self.spectrum(wave)


def make_model():
    return Mask()


def make_batch():
    wave = torch.randn(8, 4096) * (torch.arange(4096) < 3000)
    return wave, None


def loss_fn(output, batch):
    re, im, clean_re, clean_im = output
    phase = torch.atan2(im, re)
    turn = phase - torch.atan2(clean_im, clean_re)
    wrapped = turn - 2 * math.pi * torch.round(turn / (2 * math.pi))
    return F.l1_loss(re, clean_re) + F.l1_loss(im, clean_im) + 0.1 * wrapped.abs().mean()
