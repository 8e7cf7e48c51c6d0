"""FCOS, a detector without anchors: residual encoder, feature pyramid, heads with group norms shared by five levels,
focal and IoU losses; 8 images of 640 x 640."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, SIDE, CLASSES, DEPTHS, STRIDES, WIDTH, TOWER = 8, 640, 80, (3, 4, 6, 3), (8, 16, 32, 64, 128), 256, 4
SHARE = 0.02


class Bottleneck(nn.Module):
    def __init__(self, inner, middle, stride):
        super().__init__()
        outer = 4 * middle
        self.conv1, self.norm1 = nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.norm2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.norm3 = nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.short = None
        if stride != 1 or inner != outer:
            self.short = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + (x if self.short is None else self.short(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        stages, inner = [], 64
        for number, depth in enumerate(DEPTHS):
            middle = 64 * 2**number
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(inner, middle, 2 if i == 0 and number else 1))
                inner = 4 * middle
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found[1:]


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(512 * 2**i, WIDTH, 1) for i in range(3))
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))
        self.p6, self.p7 = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)

    def forward(self, levels):
        levels = [side(x) for side, x in zip(self.sides, levels, strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2, mode="nearest")
        levels = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
        levels.append(self.p6(levels[-1]))
        return [*levels, self.p7(F.relu(levels[-1]))]


def tower():
    layers = []
    for _ in range(TOWER):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(32, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers)


class FCOS(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.pyramid = Encoder(), Pyramid()
        self.kind_tower, self.box_tower = tower(), tower()
        self.kind = nn.Conv2d(WIDTH, CLASSES, 3, padding=1)
        self.box, self.centre = nn.Conv2d(WIDTH, 4, 3, padding=1), nn.Conv2d(WIDTH, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        nn.init.constant_(self.kind.bias, -4.6)

    def forward(self, images):
        kinds, boxes, centres = [], [], []
        for x, scale, stride in zip(self.pyramid(self.encoder(images)), self.scales, STRIDES, strict=True):
            places = self.box_tower(x)
            kinds.append(self.kind(self.kind_tower(x)).flatten(2))
            boxes.append((stride * F.relu(scale * self.box(places))).flatten(2))
            centres.append(self.centre(places).flatten(2))
        return [torch.cat(each, dim=2).transpose(1, 2) for each in (kinds, boxes, centres)]


def make_model():
    return FCOS()


def make_batch():
    places = sum((-(-SIDE // stride)) ** 2 for stride in STRIDES)
    inside = torch.rand(BATCH, places) < SHARE
    kinds = torch.where(inside, torch.randint(0, CLASSES, (BATCH, places)), -1)
    return torch.randn(BATCH, 3, SIDE, SIDE), (kinds, 1 + 200 * torch.rand(BATCH, places, 4))


def focal(logits, wanted):
    share = torch.sigmoid(logits)
    hit = share * wanted + (1 - share) * (1 - wanted)
    weight = (0.25 * wanted + 0.75 * (1 - wanted)) * (1 - hit) ** 2
    return (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()


def overlap(boxes, wanted):
    areas = [(each[..., 0] + each[..., 2]) * (each[..., 1] + each[..., 3]) for each in (boxes, wanted)]
    least = torch.minimum(boxes, wanted)
    both = (least[..., 0] + least[..., 2]) * (least[..., 1] + least[..., 3])
    return both / (areas[0] + areas[1] - both).clamp_min(1e-6)


def loss_fn(output, batch):
    logits, boxes, centres = (each.float() for each in output)
    kinds, wanted = batch[1]
    inside = (kinds >= 0).float()
    ones = F.one_hot(kinds.clamp_min(0), CLASSES) * inside[..., None]
    left, top, right, bottom = wanted.unbind(-1)
    ratios = torch.minimum(left, right) * torch.minimum(top, bottom)
    middle = torch.sqrt(ratios / (torch.maximum(left, right) * torch.maximum(top, bottom)))
    count, weight = inside.sum().clamp_min(1), (inside * middle).sum().clamp_min(1e-6)
    places = ((1 - overlap(boxes, wanted)) * inside * middle).sum() / weight
    centred = F.binary_cross_entropy_with_logits(centres.squeeze(-1), middle, weight=inside, reduction="sum")
    return (focal(logits, ones) + centred) / count + places
