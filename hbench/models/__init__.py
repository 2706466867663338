"""The networks: the diffusion model, and the shift block, reconstructor and discriminator trained beside it."""

from typing import cast

from hbench.config import Experiment
from hbench.core.backbone import Backbone, DiffusionModel
from hbench.errors import HBenchError
from hbench.models.adm import build_unet
from hbench.models.discriminator import build_discriminator
from hbench.models.reconstructor import build_reconstructor
from hbench.models.shift import build_shift_block
from hbench.runtime.entry_points import from_package, offered

__all__ = ["build_discriminator", "build_model", "build_reconstructor", "build_shift_block"]

GROUP = "hbench.backbones"
"""Group of the entry points of other packages' backbones: functions of an experiment, as :func:`build_model`."""


def build_model(experiment: Experiment) -> DiffusionModel:
    """Return the experiment's diffusion model with random initial weights.

    It is another package's backbone, a UNet of diffusers, or else ADM's. This is the one place that chooses.

    Raises:
        HBenchError: no package has the backbone, or it is broken; a UNet of diffusers, which is not installed, or of
            settings that it does not take.
    """
    if experiment.model.backbone is not None:
        return _of_package(experiment, experiment.model.backbone)
    if experiment.model.unet2d is None:
        return build_unet(experiment)
    from hbench.models.unet2d import build_unet2d

    return build_unet2d(experiment)


def _of_package(experiment: Experiment, name: str) -> DiffusionModel:
    """Return another package's backbone.

    Raises:
        HBenchError: no package has it, or it is broken.
    """
    kind = cast("type[DiffusionModel]", Backbone)  # any module with its members serves
    found = from_package(GROUP, name, "backbone", kind, lambda build: build(experiment))
    if found is None:
        known = f", or choose one of {', '.join(offered(GROUP))}" if offered(GROUP) else ""
        raise HBenchError(f'no backbone "{name}" (model.backbone): install the package that has it{known}')
    return found
