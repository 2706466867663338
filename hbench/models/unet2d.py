"""The ``UNet2DModel`` of diffusers, split at the h-space: the output of its middle block.

The network is that of diffusers itself, and the outputs are those of ``unet(x, t).sample``, bit by bit. Only
:func:`build_unet2d` imports diffusers, the extra ``hbench[diffusers]``.
"""

from typing import Any

import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError
from hbench.models.recompute import Recomputable


def build_unet2d(experiment: Experiment) -> "SplitUNet2D":
    """Return the UNet of diffusers that an experiment describes, with diffusers' random initial weights.

    Raises:
        HBenchError: diffusers is not installed, or refuses the settings.
    """
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        missing = 'the model is a UNet of diffusers, which is not installed: pip install "hbench[diffusers]"'
        raise HBenchError(missing) from error

    settings, data = experiment.model.unet2d, experiment.data
    assert settings is not None
    try:
        unet = UNet2DModel(
            sample_size=data.size,
            in_channels=data.channels,
            out_channels=(1 + experiment.model.learn_sigma) * data.channels,
            attention_head_dim=settings.attention_head_dim or None,
            **settings.model_dump(exclude={"class_label", "attention_head_dim"}),
        )
    except ValueError as error:
        raise HBenchError(f"model.unet2d: diffusers refuses it: {' '.join(str(error).split())}") from error
    return SplitUNet2D(unet, experiment)


class SplitUNet2D(Recomputable, DiffusionModel):
    """A ``UNet2DModel`` as a backbone.

    Args:
        unet: network of diffusers.
        experiment: experiment that describes it.
    """

    def __init__(self, unet: Any, experiment: Experiment) -> None:
        super().__init__()
        assert experiment.model.unet2d is not None
        self.unet, self.settings = unet, experiment.model.unet2d
        self.prediction = experiment.diffusion.prediction
        channels, size = self.settings.block_out_channels, experiment.data.size
        self.in_channels = experiment.data.channels
        self.emb_channels = self.settings.time_embedding_dim or 4 * channels[0]
        self.h_shape = (channels[-1], size >> len(channels) - 1, size >> len(channels) - 1)

    def encode(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return h_t, the skip connections and the embedding of time (and class).

        Args:
            x: noisy images, [B, in_channels, H, W].
            t: integer timesteps in 0..T-1, [B].

        Returns:
            ``h`` [B, *h_shape], the output of the middle block; ``skips``, outputs of the convolution and the blocks
            before it, first to last; ``emb`` [B, emb_channels].

        Raises:
            ValueError: x does not fit the model.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be [B, {self.in_channels}, H, W], got {list(x.shape)}")
        unet = self.unet
        emb = unet.time_embedding(unet.time_proj(t).to(unet.time_embedding.linear_1.weight.dtype))
        if self.settings.class_label is not None:
            emb = emb + unet.class_embedding(torch.full_like(t, self.settings.class_label)).to(emb.dtype)
        h = unet.conv_in(x)
        skips = [h]
        for block in unet.down_blocks:
            h, outputs = self.compute(block, h, emb)
            skips += outputs
        return self.compute(unet.mid_block, h, emb), skips, emb

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Return the output for a (possibly shifted) h_t.

        Args:
            h: h_t, [B, *h_shape].
            skips: the skip connections of :meth:`encode`.
            emb: the embedding of :meth:`encode`, [B, emb_channels].

        Returns:
            [B, C, H, W], the first ``in_channels`` of which are the prediction.

        Raises:
            ValueError: h has another number of channels.
        """
        if h.shape[1] != self.h_shape[0]:
            raise ValueError(f"h must be [B, {self.h_shape[0]}, H, W], got {list(h.shape)}")
        unet, skips = self.unet, list(skips)
        for block in unet.up_blocks:
            n = len(block.resnets)  # each takes one skip connection, the last first
            skips, taken = skips[:-n], skips[-n:]
            h = self.compute(block, h, tuple(taken), emb)
        out: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
        return out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``decode(*encode(x, t))``, [B, C, H, W]."""
        return self.decode(*self.encode(x, t))
