"""Parity of a vector by a cell that decides how long it thinks (PonderNet), halting in logarithms. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Ponder(nn.Module):
    def __init__(self, inp=64, hidden=128, steps=12):
        super().__init__()
        self.steps = steps
        self.cell = nn.GRUCell(inp, hidden)
        self.answer, self.halt = nn.Linear(hidden, 1), nn.Linear(hidden, 1)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        going = x.new_zeros(x.shape[0])
        logs, answers = [], []
        for step in range(self.steps):
            h = self.cell(x, h)
            gate = self.halt(h).squeeze(1).float()
            last = step == self.steps - 1
            logs.append(going if last else going + F.logsigmoid(gate))
            going = going + F.logsigmoid(-gate)
            answers.append(self.answer(h).squeeze(1).float())
        return torch.stack(answers), torch.stack(logs)


def make_model():
    return Ponder()


def make_batch():
    x = torch.randint(-1, 2, (256, 64)).float()
    return x, ((x == 1).sum(1) % 2).float()


def geometric(steps, rate, device):
    turns = torch.arange(steps, device=device)
    return F.log_softmax(turns * torch.log1p(torch.tensor(-rate, device=device)), 0)


def loss_fn(output, batch):
    answers, logs = output
    shares = logs.exp()
    each = F.binary_cross_entropy_with_logits(answers, batch[1].expand_as(answers), reduction="none")
    prior = geometric(logs.shape[0], 0.2, logs.device)[:, None]
    return (shares * each).sum(0).mean() + 0.01 * (shares * (logs - prior)).sum(0).mean()
