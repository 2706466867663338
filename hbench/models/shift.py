"""The directions f in h-space: the shift block, which depends on the sample and on time (Sec. 4.2), and fixed ones.

Both offer the same: f_k(h_t, t) of each sample, and the same in two parts, features that all K directions share and a
linear or affine map of them.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from hbench.config import Experiment
from hbench.core.backbone import Backbone
from hbench.core.directions import nearest
from hbench.models.adm import GroupNorm32

Shift = TypeVar("Shift", bound="AnyShift")


def build_shift_block(experiment: Experiment, backbone: Backbone) -> "ShiftBlock":
    """Return f with the experiment's K directions, its sizes read from the backbone."""
    settings = experiment.discovery
    block = ShiftBlock(backbone.h_shape[0], backbone.emb_channels, settings.K, settings.h_scale)
    return randomise_outputs(block, settings.start) if settings.start else block


def randomise_outputs(block: "Shift", size: float = 1.0) -> "Shift":
    """Give a shift block Gaussian output convolutions without bias, in place of the zeros it starts with; return it.

    A size of 1 keeps the size of the features that the convolutions see. Fixed directions have none: they become
    Gaussian themselves.
    """
    if isinstance(block, FixedDirections):
        nn.init.normal_(block.delta_h, std=size)
        return block
    nn.init.normal_(block.out_weight, std=size * block.out_weight.shape[-1] ** -0.5)
    nn.init.zeros_(block.out_bias)
    return block


@torch.no_grad()
def keep_outputs(block: "ShiftBlock", size: float) -> None:
    """Scale the output weights of each direction to the norm of those that :func:`randomise_outputs` draws.

    The norm is the expected one, size * sqrt(C), of the [C, C] weights of a direction. The biases stay as they are.
    """
    weight = block.out_weight
    norm = weight.flatten(1).norm(dim=1)[:, None, None]
    weight.mul_(size * weight.shape[-1] ** 0.5 / norm)


class ShiftBlock(nn.Module):
    """Asyrp's DeltaBlock (Kwon et al. 2023) with K output convolutions of 1x1, which start at zero.

    Zero outputs make x'_0 equal x_0 at the start of training, so that the adversarial game starts at its equilibrium;
    :func:`randomise_outputs` gives it other ones.

    Args:
        channels: channels of h_t.
        emb_channels: channels of the backbone's time embedding.
        K: number of directions.
        h_scale: factor of every direction, about the standard deviation of h_t.
    """

    reads_t = False
    """The time comes by ``emb``: a recording of the block serves all timesteps."""

    def __init__(self, channels: int, emb_channels: int, K: int, h_scale: float = 1.0) -> None:
        super().__init__()
        self.K, self.h_scale = K, h_scale
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, channels))
        self.out_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU())
        self.out_weight = nn.Parameter(torch.zeros(K, channels, channels))
        self.out_bias = nn.Parameter(torch.zeros(K, channels))

    def forward(self, h: Tensor, emb: Tensor, k: Tensor, t: int | None = None) -> Tensor:
        """Return f_k(h_t, t), of unit magnitude: multiply by s for delta_h.

        Args:
            h: h_t, [B, C, H, W].
            emb: the backbone's time embedding, [B, emb_channels].
            k: direction of each sample, [B], in 0..K-1.
            t: timestep, which the block knows by ``emb`` already.

        Returns:
            [B, C, H, W]. Only the directions asked for are computed: the cost does not grow with K.
        """
        hidden = self.hidden(h, emb).flatten(2)
        weight, bias = self.out_weight[k], self.out_bias[k]
        bias, weight = bias[..., None].to(hidden.dtype), weight.to(hidden.dtype)
        return torch.baddbmm(bias, weight, hidden, beta=self.h_scale, alpha=self.h_scale).reshape(h.shape)

    def hidden(self, h: Tensor, emb: Tensor, t: int | None = None) -> Tensor:
        """Return the features that all K directions share, [B, C, H, W]: the input of the output convolutions."""
        hidden = self.in_layers(h) + self.emb_layers(emb)[..., None, None]
        shared: Tensor = self.out_layers(hidden)
        return shared

    def direction(self, hidden: Tensor, k: int) -> Tensor:
        """Return f_k, [..., C, H, W], from :meth:`hidden` features of that shape.

        The output convolution is affine: f_k of the features' mean over samples is the mean of f_k over samples.
        """
        direction = self.out_weight[k] @ hidden.flatten(-2) + self.out_bias[k][:, None]
        return self.h_scale * direction.reshape(hidden.shape)


class FixedDirections(nn.Module):
    """K directions that depend on time alone, or on nothing: those that a file holds, or that a method has found.

    Args:
        delta_h: directions at unit magnitude, [K, timesteps, C, H, W].
        timesteps: timesteps that they are for; at others, those of the nearest one are taken. A single one is for all.
    """

    delta_h: Tensor
    timesteps: Tensor

    def __init__(self, delta_h: Tensor, timesteps: Sequence[int]) -> None:
        super().__init__()
        self.K, self._timesteps = len(delta_h), tuple(timesteps)  # a buffer on a GPU would be read at every step
        self.register_buffer("delta_h", delta_h.float())
        self.register_buffer("timesteps", torch.tensor(self._timesteps))

    def forward(self, h: Tensor, emb: Tensor, k: Tensor, t: int) -> Tensor:
        """Return the direction of each sample at t, [B, C, H, W], of unit magnitude; k [B] is in 0..K-1."""
        return self.delta_h[k, nearest(self._timesteps, t)]

    def hidden(self, h: Tensor, emb: Tensor, t: int) -> Tensor:
        """Return the features that all K directions share: which timestep it is, one-hot, [B, timesteps, 1, 1]."""
        features = torch.zeros(len(h), len(self._timesteps), 1, 1, device=h.device)
        features[:, nearest(self._timesteps, t)] = 1
        return features

    def direction(self, hidden: Tensor, k: int) -> Tensor:
        """Return f_k, [..., C, H, W], from :meth:`hidden` features [..., timesteps, 1, 1], of which it is linear."""
        direction: Tensor = torch.tensordot(hidden.flatten(-3), self.delta_h[k], dims=1)
        return direction


AnyShift = ShiftBlock | FixedDirections
"""Directions of a run."""
