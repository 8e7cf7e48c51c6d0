"""Location-sensitive attention decoder: masks of -inf with one valid frame at least, guided attention, BCE with
logits."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class LocationAttention(nn.Module):
    def __init__(self, q, m, dim=64, filters=16):
        super().__init__()
        self.q, self.m, self.v = nn.Linear(q, dim, bias=False), nn.Linear(m, dim, bias=False), nn.Linear(dim, 1)
        self.conv, self.loc = nn.Conv1d(2, filters, 15, padding=7, bias=False), nn.Linear(filters, dim, bias=False)

    def forward(self, query, memory, keys, prev, cum, pad):
        loc = self.loc(self.conv(torch.stack([prev, cum], 1)).transpose(1, 2))
        e = self.v(torch.tanh(self.q(query)[:, None] + keys + loc)).squeeze(-1)
        w = torch.softmax(e.float().masked_fill(pad, float("-inf")), dim=-1)
        return torch.bmm(w[:, None].to(memory.dtype), memory).squeeze(1), w


class Tacotron(nn.Module):
    def __init__(self, vocab=64, dim=128, mels=80):
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.enc = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)
        self.att = LocationAttention(256, dim)
        self.cell = nn.LSTMCell(mels + dim, 256)
        self.mel, self.stop = nn.Linear(256 + dim, mels), nn.Linear(256 + dim, 1)

    def forward(self, text, mels):
        memory, _ = self.enc(self.emb(text))
        pad = text == 0
        keys = self.att.m(memory)
        b = text.shape[0]
        h = c = memory.new_zeros(b, 256)
        ctx = memory.new_zeros(b, memory.shape[-1])
        prev = cum = torch.zeros(b, text.shape[1], device=text.device)
        outs, stops = [], []
        frame = mels.new_zeros(b, mels.shape[-1])
        for t in range(mels.shape[1]):
            h, c = self.cell(torch.cat([frame, ctx], -1), (h, c))
            ctx, prev = self.att(h, memory, keys, prev, cum, pad)
            cum = cum + prev
            feat = torch.cat([h, ctx], -1)
            outs.append(self.mel(feat))
            stops.append(self.stop(feat))
            frame = mels[:, t]
        return torch.stack(outs, 1), torch.cat(stops, 1)


def make_model():
    return Tacotron()


def make_batch():
    text = torch.randint(1, 64, (8, 20))
    text[:, 16:] = 0
    mels = torch.randn(8, 12, 80)
    return (text, mels), (mels, (torch.arange(12) > 9).float().expand(8, -1))


def loss_fn(output, batch):
    mel, stop = output
    target, gate = batch[1]
    return F.l1_loss(mel, target) + F.binary_cross_entropy_with_logits(stop, gate, pos_weight=torch.tensor(5.0))
