"""The interface of the diffusion model: to the mathematics, and to all that trains and stores it."""

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Backbone(Protocol):
    """A diffusion model, split at its h-space: the features of its bottleneck, which directions shift.

    A new kind of model is a module with these members. ``isinstance`` checks that they are there, not their types.
    """

    h_shape: tuple[int, int, int]
    """Shape (C, H, W) of one sample's h_t."""
    emb_channels: int
    """Channels of the time embedding."""
    in_channels: int
    """Channels of the images."""
    prediction: Literal["eps", "v", "x_0"]
    """Quantity that the output predicts: the noise, the velocity (Salimans & Ho 2022), or the clean image."""

    def encode(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return h_t, the skip connections and the time embedding.

        Args:
            x: noisy images, [B, in_channels, H, W].
            t: integer timesteps in 0..T-1, [B].

        Returns:
            ``h``: h_t, [B, *h_shape]. ``skips``: tensors [B, ...] that only :meth:`decode` understands; callers
            take, repeat or concatenate their samples, in the first dimension, and do nothing else with them.
            ``emb``: time embedding, [B, emb_channels].
        """
        ...

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Return the prediction for a (possibly shifted) h_t.

        Args:
            h: h_t, [B, *h_shape].
            skips: skip connections of :meth:`encode`, [B, ...] each.
            emb: time embedding of :meth:`encode`, [B, emb_channels].

        Returns:
            [B, C, H, W] with C >= in_channels. The first ``in_channels`` are the prediction, the rest is ignored.
        """
        ...


class DiffusionModel(nn.Module, Backbone):
    """A backbone with weights: the type of the networks that are pretrained, stored and searched for directions.

    Only a type checker asks for the base class: any module with the members of :class:`Backbone` serves.
    """
