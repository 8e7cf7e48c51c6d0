"""Lines of text by convolutions, an LSTM and CTC. Careful: the log_softmax is in FP32 and so is the loss."""

import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, letters=96):
        super().__init__()
        net, i = [], 1
        for o, pool in ((64, (2, 2)), (128, (2, 2)), (256, (2, 1)), (256, (2, 1))):
            net += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True), nn.MaxPool2d(pool)]
            i = o
        self.net = nn.Sequential(*net)
        self.lstm = nn.LSTM(512, 256, bidirectional=True)
        self.out = nn.Linear(512, letters)

    def forward(self, image):
        h = self.net(image)
        n, c, high, wide = h.shape
        h, _ = self.lstm(h.permute(3, 0, 1, 2).reshape(wide, n, c * high))
        return self.out(h).float().log_softmax(-1)


def make_model():
    return Reader().to(memory_format=torch.channels_last)


def make_batch():
    image = torch.rand(32, 1, 32, 256).to(memory_format=torch.channels_last)
    return {"image": image, "text": torch.randint(1, 96, (32, 20))}


def loss_fn(output, batch):
    n = output.shape[1]
    long = torch.full((n,), output.shape[0]), torch.full((n,), 20)
    return nn.functional.ctc_loss(output, batch["text"], *long, zero_infinity=True)
