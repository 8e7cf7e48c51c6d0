"""An image transformer with adapters through an autograd function of its own. Planted: the function is decorated so
that autocast casts its inputs to FP32, which keeps both products of every adapter, as wide as the layer, off the
tensor cores' 16 bits; and the layer's output is cast up and down again around an addition."""

import torch
import torch.nn.functional as F
from torch import nn


class WideProduct(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2)


class Adapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)

    def forward(self, x):
        return WideProduct.apply(x, self.weight)  # planted: G303


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.adapter = Adapter(width)

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width))
        x = (x.float() + y.float()).to(y.dtype)  # planted: G302
        h = self.down(F.gelu(self.up(self.second(x))))
        return x + h + self.adapter(h).to(h.dtype)


class ImageTransformer(nn.Module):
    def __init__(self, width=384, heads=6, depth=4, classes=1000):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, stride=16)
        self.places = nn.Parameter(0.02 * torch.randn(1, 196, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def make_model():
    return ImageTransformer()


def make_batch():
    return torch.rand(32, 3, 224, 224), torch.randint(0, 1000, (32,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
