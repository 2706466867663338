"""The networks: the diffusion model, and the shift block, reconstructor and discriminator trained beside it."""

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.models.adm import build_unet
from hbench.models.discriminator import build_discriminator
from hbench.models.reconstructor import build_reconstructor
from hbench.models.shift import build_shift_block

__all__ = ["build_discriminator", "build_model", "build_reconstructor", "build_shift_block"]


def build_model(experiment: Experiment) -> DiffusionModel:
    """Return the experiment's diffusion model with random initial weights: a UNet of diffusers, or else ADM's.

    This is the one place that chooses.

    Raises:
        HBenchError: a UNet of diffusers, which is not installed, or of settings that it does not take.
    """
    if experiment.model.unet2d is None:
        return build_unet(experiment)
    from hbench.models.unet2d import build_unet2d

    return build_unet2d(experiment)
