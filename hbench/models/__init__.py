"""The networks: the diffusion model, and the shift block, reconstructor and discriminator trained beside it."""

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.models.adm import build_unet
from hbench.models.discriminator import build_discriminator
from hbench.models.reconstructor import build_reconstructor
from hbench.models.shift import build_shift_block

__all__ = ["build_discriminator", "build_model", "build_reconstructor", "build_shift_block"]


def build_model(experiment: Experiment) -> DiffusionModel:
    """Return the experiment's diffusion model with random initial weights.

    ADM's UNet is the only kind so far; this is the one place that chooses.
    """
    return build_unet(experiment)
