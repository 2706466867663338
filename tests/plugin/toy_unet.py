"""A backbone of another package: a UNet of two sizes that predicts v, without a base class of hbench."""

from torch import cat, nn


class ToyUNet(nn.Module):
    in_channels, emb_channels, prediction = 1, 8, "v"

    def __init__(self, size):
        super().__init__()
        self.h_shape = (32, size // 4, size // 4)
        self.embed = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))
        self.into_h = nn.Linear(8, 32)
        self.fine = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 32, 4, stride=4)
        self.up = nn.ConvTranspose2d(32, 8, 4, stride=4)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def encode(self, x, t):
        emb = self.embed(t[:, None] / 1000)
        skip = self.fine(x)
        return self.down(skip.relu()) + self.into_h(emb)[..., None, None], [skip], emb

    def decode(self, h, skips, emb):
        return self.out(cat([self.up(h.relu()), *skips], dim=1).relu())


def build(experiment):
    return ToyUNet(experiment.data.size)
