"""A controller with an external memory addressed by content and shifted attention. Careful: cosines by
F.cosine_similarity, sharpening in FP32 with an eps that FP32 holds, gates of sigmoid."""

import torch
import torch.nn.functional as F
from torch import nn


class Head(nn.Module):
    def __init__(self, width, cell):
        super().__init__()
        self.sizes = [cell, 1, 1, 3, 1]
        self.net = nn.Linear(width, sum(self.sizes) + 2)

    def forward(self, h, memory, before):
        key, strength, gate, shift, sharpen, _ = self.net(h).split([*self.sizes, 2], -1)
        by_content = F.cosine_similarity(memory, torch.tanh(key)[:, None], dim=-1)
        content = torch.softmax(F.softplus(strength) * by_content, -1)
        gate = torch.sigmoid(gate)
        w = gate * content + (1 - gate) * before
        shift = torch.softmax(shift, -1)
        w = shift[:, :1] * w.roll(1, -1) + shift[:, 1:2] * w + shift[:, 2:] * w.roll(-1, -1)
        w = (w.float() + 1e-6) ** (1 + F.softplus(sharpen).clamp(max=4).float())
        return w / w.sum(-1, keepdim=True)


class TuringMachine(nn.Module):
    def __init__(self, inner=32, width=256, cells=128, cell=64):
        super().__init__()
        self.cells, self.cell = cells, cell
        self.controller = nn.LSTMCell(inner + cell, width)
        self.read, self.write = Head(width, cell), Head(width, cell)
        self.erase, self.add = nn.Linear(width, cell), nn.Linear(width, cell)
        self.out = nn.Linear(width + cell, inner)
        self.start = nn.Parameter(0.05 * torch.randn(cells, cell))

    def forward(self, x):
        b = x.shape[0]
        memory = self.start.expand(b, -1, -1)
        reading = writing = x.new_full((b, self.cells), 1 / self.cells)
        seen, state, outs = x.new_zeros(b, self.cell), None, []
        for step in x.unbind(1):
            state = self.controller(torch.cat([step, seen], -1), state)
            h = state[0]
            writing = self.write(h, memory, writing)
            memory = memory * (1 - writing[..., None] * torch.sigmoid(self.erase(h))[:, None])
            memory = memory + writing[..., None] * torch.tanh(self.add(h))[:, None]
            reading = self.read(h, memory, reading)
            seen = torch.einsum("bn,bnc->bc", reading, memory)
            outs.append(self.out(torch.cat([h, seen], -1)))
        return torch.stack(outs, 1)


def make_model():
    return TuringMachine()


def make_batch():
    bits = (torch.rand(64, 20, 32) > 0.5).float()
    return bits, bits.roll(10, 1)


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
