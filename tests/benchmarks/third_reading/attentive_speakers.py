"""Speaker verification with attentive statistics and squeeze-and-excitation. Careful: the variance is clamped before
the root at 1e-4, which FP16 has, and the pooling runs in FP32."""

import torch
from torch import nn


class Squeeze(nn.Module):
    def __init__(self, n, inner=128):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(n, inner), nn.ReLU(), nn.Linear(inner, n), nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(x.mean(2)).unsqueeze(2)


class Verifier(nn.Module):
    def __init__(self, mels=80, n=512, speakers=1216):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(mels, n, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(n))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(n, n, 3, padding=d, dilation=d), nn.ReLU(), nn.BatchNorm1d(n), Squeeze(n))
            for d in (2, 3, 4)
        )
        self.attend = nn.Sequential(nn.Conv1d(n, 128, 1), nn.Tanh(), nn.Conv1d(128, n, 1))
        self.out = nn.Sequential(nn.BatchNorm1d(2 * n), nn.Linear(2 * n, 192), nn.Linear(192, speakers))

    def forward(self, mel):
        h = self.stem(mel)
        for block in self.blocks:
            h = h + block(h)
        share = torch.softmax(self.attend(h).float(), dim=2)
        h = h.float()
        mean = (share * h).sum(2)
        deviation = (share * (h - mean.unsqueeze(2)).square()).sum(2).clamp(min=1e-4).sqrt()
        return self.out(torch.cat([mean, deviation], 1))


def make_model():
    return Verifier()


def make_batch():
    return torch.randn(16, 80, 200), torch.randint(0, 1216, (16,))


def loss_fn(logits, batch):
    return nn.functional.cross_entropy(logits, batch[1], label_smoothing=0.1)
