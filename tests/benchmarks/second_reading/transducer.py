"""A speech transducer: a convolutional and recurrent encoder, a prediction network, and the lattice's loss as a loop
of logaddexp over frames in FP32, beside a CTC loss. Careful."""

import torch
import torch.nn.functional as F
from torch import nn

PIECES = 256


class Transducer(nn.Module):
    def __init__(self, mels=80, width=256):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(mels, width, 3, 2, 1), nn.ReLU(), nn.Conv1d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.encoder = nn.LSTM(width, width, 2, batch_first=True)
        self.embed, self.predictor = nn.Embedding(PIECES, width), nn.GRU(width, width, batch_first=True)
        self.join, self.head, self.aux = nn.Linear(width, width), nn.Linear(width, PIECES), nn.Linear(width, PIECES)

    def forward(self, mel, pieces):
        x, _ = self.encoder(self.stem(mel).transpose(1, 2))
        y, _ = self.predictor(self.embed(F.pad(pieces, (1, 0))))
        joint = self.head(torch.tanh(self.join(x[:, :, None] + y[:, None])))
        return joint, self.aux(x)


def make_model():
    return Transducer()


def make_batch():
    return {"mel": torch.randn(4, 80, 64), "pieces": torch.randint(1, PIECES, (4, 8))}


def lattice(log_probs, pieces):
    blank = log_probs[..., 0]
    label = log_probs[:, :, :-1].gather(3, pieces[:, None, :, None].expand(-1, blank.shape[1], -1, 1)).squeeze(3)
    alpha = F.pad(label[:, 0].cumsum(1), (1, 0))
    for t in range(1, blank.shape[1]):
        stay = alpha + blank[:, t - 1]
        cells = [stay[:, 0]]
        for u in range(1, stay.shape[1]):
            cells.append(torch.logaddexp(stay[:, u], cells[-1] + label[:, t, u - 1]))
        alpha = torch.stack(cells, 1)
    return -(alpha[:, -1] + blank[:, -1, -1])


def loss_fn(output, batch):
    joint, aux = output
    pieces = batch["pieces"]
    whole = lattice(F.log_softmax(joint.float(), -1), pieces).mean()
    frames = torch.full((len(aux),), aux.shape[1], dtype=torch.long)
    lengths = torch.full((len(aux),), pieces.shape[1], dtype=torch.long)
    ctc = F.ctc_loss(F.log_softmax(aux.float(), -1).transpose(0, 1), pieces, frames, lengths, zero_infinity=True)
    return whole + 0.3 * ctc
