"""The networks, built from an experiment: the frozen ADM UNet, and what is trained beside it."""

from typing import Any

from hbench.config import Experiment
from hbench.models.adm import EncoderUNetModel, UNetModel
from hbench.models.reconstructor import LeNet, ResNet18
from hbench.models.shift import ShiftBlock


def build_model(experiment: Experiment) -> UNetModel:
    """The diffusion model's UNet, with ADM's initial weights."""
    return UNetModel(
        out_channels=experiment.data.channels * (2 if experiment.model.learn_sigma else 1),
        **_adm_arguments(experiment),
    )


def build_discriminator(experiment: Experiment) -> EncoderUNetModel:
    """D: the UNet's encoder of the same configuration, adaptive average pool, one logit (Sec. B.3)."""
    return EncoderUNetModel(out_channels=1, **_adm_arguments(experiment))


def build_shift_block(experiment: Experiment, model: UNetModel) -> ShiftBlock:
    """F with K directions, its sizes read from the model."""
    return ShiftBlock(model.h_shape[0], model.emb_channels, experiment.discovery.K)


def build_reconstructor(experiment: Experiment) -> LeNet | ResNet18:
    """R for pairs of the experiment's images."""
    if experiment.discovery.reconstructor == "lenet":
        return LeNet(2 * experiment.data.channels, experiment.data.size, experiment.discovery.K)
    return ResNet18(2 * experiment.data.channels, experiment.discovery.K)


def _adm_arguments(experiment: Experiment) -> dict[str, Any]:
    model = experiment.model
    return {
        "image_size": experiment.data.size,
        "in_channels": experiment.data.channels,
        "model_channels": model.model_channels,
        "num_res_blocks": model.num_res_blocks,
        "attention_resolutions": [experiment.data.size // size for size in model.attention_resolutions],
        "dropout": model.dropout,
        "channel_mult": model.channel_mult,
        "conv_resample": model.conv_resample,
        "num_heads": model.num_heads,
        "num_head_channels": model.num_head_channels,
        "use_scale_shift_norm": model.use_scale_shift_norm,
        "resblock_updown": model.resblock_updown,
        "use_new_attention_order": model.use_new_attention_order,
    }
