"""A segmentation network: residual encoder with dilated convolutions, pyramid of dilations, bilinear upsampling; 16
images of 512 x 512, 21 classes, borders ignored."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, CLASSES, IGNORED = 16, 512, 21, 255


def conv(inputs, outputs, kernel=3, stride=1, dilation=1):
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(outputs)
    )


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride=1, dilation=1):
        super().__init__()
        self.reduce, self.spatial = conv(inputs, width, 1), conv(width, width, 3, stride, dilation)
        self.expand = conv(width, 4 * width, 1)
        self.skip = conv(inputs, 4 * width, 1, stride) if inputs != 4 * width else nn.Identity()

    def forward(self, x):
        y = F.relu(self.spatial(F.relu(self.reduce(x))))
        return F.relu(self.expand(y) + self.skip(x))


class Pyramid(nn.Module):
    def __init__(self, inputs, width=256, rates=(6, 12, 18)):
        super().__init__()
        self.branches = nn.ModuleList([conv(inputs, width, 1), *(conv(inputs, width, 3, 1, rate) for rate in rates)])
        self.pooled = nn.Conv2d(inputs, width, 1)
        self.project = conv((len(rates) + 2) * width, width, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        whole = F.relu(self.pooled(F.adaptive_avg_pool2d(x, 1)))
        whole = F.interpolate(whole, size=x.shape[2:], mode="bilinear", align_corners=False)
        parts = [F.relu(branch(x)) for branch in self.branches]
        return self.drop(F.relu(self.project(torch.cat([*parts, whole], dim=1))))


class Segmenter(nn.Module):
    def __init__(self, depths=(3, 4, 6, 3)):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.stages, inputs = nn.ModuleList(), 64
        for depth, width, stride, dilation in zip(depths, (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True):
            blocks = []
            for number in range(depth):
                blocks.append(Bottleneck(inputs, width, stride if number == 0 else 1, dilation))
                inputs = 4 * width
            self.stages.append(nn.Sequential(*blocks))
        self.pyramid = Pyramid(inputs)
        self.low = conv(256, 48, 1)
        self.fuse = nn.Sequential(conv(256 + 48, 256), nn.ReLU(), conv(256, 256), nn.ReLU())
        self.classify = nn.Conv2d(256, CLASSES, 1)

    def forward(self, images):
        x = self.stages[0](self.stem(images))
        low = F.relu(self.low(x))
        for stage in self.stages[1:]:
            x = stage(x)
        x = F.interpolate(self.pyramid(x), size=low.shape[2:], mode="bilinear", align_corners=False)
        x = self.classify(self.fuse(torch.cat([x, low], dim=1)))
        return F.interpolate(x, size=images.shape[2:], mode="bilinear", align_corners=False)


def make_model():
    return Segmenter()


def make_batch():
    labels = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE))
    labels[:, ::32] = IGNORED
    return torch.randn(BATCH, 3, SIDE, SIDE), labels


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1], ignore_index=IGNORED)
