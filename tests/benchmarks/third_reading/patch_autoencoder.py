"""A masked autoencoder of images, targets normalised by patch. Careful: the variance has an eps under its root and is
that of the image, in FP32."""

import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self, size=96, patch=8, d=192, inner=96, kept=0.25):
        super().__init__()
        self.patch, self.count = patch, (size // patch) ** 2
        self.kept = int(self.count * kept)
        self.embed = nn.Linear(3 * patch * patch, d)
        self.places = nn.Parameter(0.02 * torch.randn(1, self.count, d))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 3, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True), 4,
            enable_nested_tensor=False)  # fmt: skip
        self.narrow, self.token = nn.Linear(d, inner), nn.Parameter(torch.zeros(1, 1, inner))
        self.decoder = nn.TransformerEncoderLayer(inner, 3, 4 * inner, 0.0, "gelu", batch_first=True, norm_first=True)
        self.out = nn.Linear(inner, 3 * patch * patch)

    def patches(self, image):
        n, c, h, w = image.shape
        p = self.patch
        return image.view(n, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, p * p * c)

    def forward(self, image, order):
        target = self.patches(image)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        x = self.embed(self.patches(image)) + self.places
        keep = order[:, : self.kept, None]
        h = self.narrow(self.encoder(torch.take_along_dim(x, keep, 1)))
        rest = self.token.expand(x.shape[0], self.count - self.kept, -1).to(h.dtype)
        whole = torch.take_along_dim(torch.cat([h, rest], 1), order.argsort(1)[:, :, None], 1)
        made = self.out(self.decoder(whole))
        return ((made - target) ** 2).mean(-1)[:, self.kept :].mean()


def make_model():
    return Masked()


def make_batch():
    return {"image": torch.rand(32, 3, 96, 96), "order": torch.rand(32, 144).argsort(1)}


def loss_fn(output, batch):
    return output
