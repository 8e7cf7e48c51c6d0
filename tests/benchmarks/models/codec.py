"""A neural audio codec: strided convolutions with weight norm, an LSTM, eight residual codebooks, transposed
convolutions, losses on spectrograms of six window lengths; 24 clips of one second at 24 kHz."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

BATCH, SAMPLES, WIDTH, STRIDES, CODES, CODEBOOKS, DIM = 24, 24000, 32, (2, 4, 5, 8), 1024, 8, 128
WINDOWS = (64, 128, 256, 512, 1024, 2048)


class Conv(nn.Module):
    def __init__(self, inner, outer, kernel, stride=1, dilation=1):
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(inner, outer, kernel, stride, dilation=dilation))
        self.pad = (kernel - 1) * dilation - (stride - 1)

    def forward(self, x):
        return self.conv(F.pad(x, (self.pad, 0), mode="reflect"))


class Unconv(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv, self.stride = weight_norm(nn.ConvTranspose1d(inner, outer, 2 * stride, stride)), stride

    def forward(self, x):
        return self.conv(x)[..., : -self.stride]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.ELU(), Conv(width, width // 2, 3), nn.ELU(), Conv(width // 2, width, 1))

    def forward(self, x):
        return x + self.body(x)


class Memory(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)

    def forward(self, x):
        y = x.transpose(1, 2)
        return (self.lstm(y)[0] + y).transpose(1, 2)


class Quantizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.codebooks = nn.ModuleList(nn.Embedding(CODES, DIM) for _ in range(CODEBOOKS))

    def forward(self, x):
        rest = x.transpose(1, 2).float()
        total, loss = torch.zeros_like(rest), 0.0
        for codebook in self.codebooks:
            codes = torch.cdist(rest.detach(), codebook.weight[None]).argmin(dim=-1)
            found = codebook(codes)
            loss = loss + F.mse_loss(found, rest.detach()) + 0.25 * F.mse_loss(rest, found.detach())
            total = total + rest + (found - rest).detach()
            rest = rest - found.detach()
        return total.transpose(1, 2), loss


class Codec(nn.Module):
    def __init__(self):
        super().__init__()
        width, down, up = WIDTH, [Conv(1, WIDTH, 7)], []
        for stride in STRIDES:
            down += [Residual(width), nn.ELU(), Conv(width, 2 * width, 2 * stride, stride)]
            up = [nn.ELU(), Unconv(2 * width, width, stride), Residual(width), *up]
            width *= 2
        self.encoder = nn.Sequential(*down, Memory(width), nn.ELU(), Conv(width, DIM, 7))
        self.quantizer = Quantizer()
        self.decoder = nn.Sequential(Conv(DIM, width, 7), Memory(width), *up, nn.ELU(), Conv(WIDTH, 1, 7))

    def forward(self, x):
        codes, loss = self.quantizer(self.encoder(x))
        return self.decoder(codes), loss


def spectrogram(x, length):
    window = torch.hann_window(length, device=x.device)
    return torch.stft(x, length, length // 4, window=window, return_complex=True).abs()


def make_model():
    return Codec()


def make_batch():
    waves = 0.1 * torch.randn(BATCH, 1, SAMPLES)
    return waves, waves


def loss_fn(output, batch):
    made, wanted = output[0].float().squeeze(1), batch[1].squeeze(1)
    loss = 0.1 * F.l1_loss(made, wanted) + output[1]
    for length in WINDOWS:
        a, b = spectrogram(made, length), spectrogram(wanted, length)
        loss = loss + F.l1_loss(a, b) + F.mse_loss(torch.log(a + 1e-5), torch.log(b + 1e-5)) ** 0.5
    return loss
