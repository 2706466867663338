"""The discriminator D, which tells raw samples from shifted ones (Sec. 4.3)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.models.adm import EncoderUNetModel, config_of


def build_discriminator(experiment: Experiment) -> EncoderUNetModel:
    """Return D: the encoder of ADM's UNet, adaptive average pool, one logit (Sec. B.3).

    Its configuration is the section [model], as the UNet's. D sees images alone, so a backbone of another kind can have
    the same D; an experiment then keeps [model] for it.
    """
    return EncoderUNetModel(config_of(experiment, out_channels=1))


def judge(discriminator: EncoderUNetModel, images: Tensor) -> Tensor:
    """Return D's logits [B], float32, for clean images [B, C, H, W]; positive = raw, negative = shifted.

    The timestep that D receives is always 0.
    """
    t = torch.zeros(len(images), dtype=torch.long, device=images.device)
    logits: Tensor = discriminator(images, t)
    return logits.squeeze(1).float()


@contextmanager
def frozen(discriminator: EncoderUNetModel) -> Iterator[None]:
    """Let D only pass gradients on to its images while the block runs: its weights get none."""
    discriminator.requires_grad_(False)
    try:
        yield
    finally:
        discriminator.requires_grad_(True)
