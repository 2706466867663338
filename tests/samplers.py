import torch

from hbench.core.diffusion import alpha_bar_schedule, timesteps
from hbench.core.sampler import Sampler


def sampler_of(model, visited, t_shift=0, **fields):
    """Return a sampler of DDPM's schedule on the CPU; ``visited`` are its timesteps, or how many."""
    visited = timesteps(visited) if isinstance(visited, int) else visited
    shape, device = fields.pop("image_shape", (1, 16, 16)), fields.pop("device", torch.device("cpu"))
    return Sampler(model, alpha_bar_schedule(), tuple(visited), shape, device, t_shift, **fields)
