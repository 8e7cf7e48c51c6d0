"""Neural vocoder with a log-power spectrogram loss. Planted: log of zero: silence."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class SpecLoss(nn.Module):
    def __init__(self, n_fft=512, hop=128):
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))

    def spec(self, wav):
        s = torch.stft(wav, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = s.real**2 + s.imag**2
        return 10 * power.log10()  # planted: G204

    def forward(self, a, b):
        return F.l1_loss(self.spec(a), self.spec(b))


class Vocoder(nn.Module):
    def __init__(self, mels=80, ch=128):
        super().__init__()
        self.pre = nn.Conv1d(mels, ch, 7, padding=3)
        self.up = nn.ModuleList([nn.ConvTranspose1d(ch, ch, 16, 8, 4), nn.ConvTranspose1d(ch, ch, 16, 8, 4)])
        self.res = nn.ModuleList([nn.Conv1d(ch, ch, 3, padding=1), nn.Conv1d(ch, ch, 3, padding=1)])
        self.post = nn.Conv1d(ch, 1, 7, padding=3)

    def forward(self, mel):
        x = self.pre(mel)
        for up, res in zip(self.up, self.res, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = x + res(F.leaky_relu(x, 0.1))
        return torch.tanh(self.post(x)).squeeze(1)


class Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.gen = Vocoder()
        self.loss = SpecLoss()

    def forward(self, mel, wav):
        return self.loss(self.gen(mel), wav)


def make_model():
    return Training()


def make_batch():
    return (torch.randn(4, 80, 64), torch.rand(4, 64 * 64) * 2 - 1), None


def loss_fn(output, batch):
    return output
