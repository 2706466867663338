"""The networks: the frozen ADM UNet, and the shift block, reconstructor and discriminator trained beside it."""

from hbench.models.adm import build_model
from hbench.models.discriminator import build_discriminator
from hbench.models.reconstructor import build_reconstructor
from hbench.models.shift import build_shift_block

__all__ = ["build_discriminator", "build_model", "build_reconstructor", "build_shift_block"]
