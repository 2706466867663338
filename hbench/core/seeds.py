"""The random streams of hbench: every random number follows from a seed that has its function here.

| stream | seeded random numbers | entropy |
|---|---|---|
| ``initial_weights`` | initial weights of the networks that are trained | seed |
| ``starting_noise`` | x_T of image i; :func:`draw_x_T` draws it | seed, i |
| ``shift_of_pair`` | k and s of the pair i that an evaluation draws | seed, i, 1 |
| ``discovery_step`` | x_T, k and s of a training step of a discovery | seed, step, 2 |
| ``pretraining_step`` | images, timesteps and noise of a training step of the diffusion model | seed, step |
| ``dropout`` | dropout in that step, where several processes share it | seed, step, 3, rank |
| ``flips`` | choice of the images that such a step mirrors | seed, step, 4 |
| ``pool`` | seed of the ``starting_noise`` of a discovery's pool | seed |
| ``mean_samples`` | seed of the ``starting_noise`` of the n samples in a mean direction | seed, n |
| ``controls`` | weights of count untrained directions in a user study | seed, count |
| ``untrained_blocks`` | weights of the shift block i that is compared with a trained one | seed, i, 4 |
| ``properties_bootstrap`` | resampling of n measured samples | seed, n |
| ``probe`` | weights and shifts of the steps that predict memory and time | seed, unmixed |
| ``study_design`` | who sees which direction in a user study, and in which order | seed, unmixed |
| ``study_bootstrap`` | resampling of a user study's directions | seed, unmixed |
| ``found`` | Gaussian directions, and the start of an iteration, of a method that finds directions | seed, 0, 7 |
| ``found_on`` | seed of the ``starting_noise`` of the samples that such a method looks at | seed, 0, 8 |
| ``gradient_batch`` | x_T, k and s of the batch i that gradients are compared on | seed, i, 9 |
| ``balance`` | classes of perfect samples, for the floor of a balance | seed, 0, 5 |
| ``real_halves`` | the two halves of real images that are compared with each other | none |

Entropy is mixed by NumPy's ``SeedSequence``, which ignores zeros at its end: (seed, 0) is (seed). Streams of equal
entropy, such as ``starting_noise`` and ``pretraining_step``, are equal seeds of different quantities. The steps of a
discovery share theirs with no measurement.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hbench import errors


def draw_x_T(seed: int, first: int, count: int, shape: Sequence[int]) -> Tensor:
    """Draw the starting noise of images ``first`` .. ``first + count - 1``: float32 [count, *shape], on the CPU.

    Each image has its own seed, so it does not depend on the batch size or on where a run was resumed.
    """
    x_T = torch.empty(count, *shape)
    for i in range(count):
        x_T[i].normal_(generator=torch.Generator().manual_seed(starting_noise(seed, first + i)))
    return x_T


def initial_weights(seed: int) -> int:
    """Return the seed of the initial weights of networks."""
    return _mixed(seed)


def starting_noise(seed: int, i: int) -> int:
    """Return the seed of image i's x_T."""
    return _mixed(seed, i)


def shift_of_pair(seed: int, i: int) -> int:
    """Return the seed of the direction and magnitude of an evaluation's pair i."""
    return _mixed(seed, i, 1)


def discovery_step(seed: int, step: int) -> int:
    """Return the seed of everything random in a training step of a discovery."""
    return _mixed(seed, step, 2)


def pretraining_step(seed: int, step: int) -> int:
    """Return the seed of the images, timesteps and noise of a training step of the diffusion model."""
    return _mixed(seed, step)


def dropout(seed: int, step: int, rank: int) -> int:
    """Return the seed of dropout in a training step of the diffusion model: other masks on each process."""
    return _mixed(seed, step, 3, rank)


def flips(seed: int, step: int) -> int:
    """Return the seed of the choice of images that a training step of the diffusion model mirrors."""
    return _mixed(seed, step, 4)


def pool(seed: int) -> int:
    """Return the seed of the starting noise of a discovery's pool."""
    return _mixed(seed)


def mean_samples(seed: int, n: int) -> int:
    """Return the seed of the starting noise of the n samples in a mean direction."""
    return _mixed(seed, n)


def controls(seed: int, count: int) -> int:
    """Return the seed of the weights of ``count`` untrained directions."""
    return _mixed(seed, count)


def untrained_blocks(seed: int, i: int) -> int:
    """Return the seed of the weights of the shift block i that is compared with a trained one."""
    return _mixed(seed, i, 4)


def properties_bootstrap(seed: int, n: int) -> int:
    """Return the seed of the bootstrap over n measured samples."""
    return _mixed(seed, n)


def probe(seed: int) -> int:
    """Return the seed of the steps that predict memory and time."""
    errors.check_seed(seed)
    return seed


def study_design(seed: int) -> int:
    """Return the seed of a user study's shuffles."""
    errors.check_seed(seed)
    return seed


def study_bootstrap(seed: int) -> int:
    """Return the seed of the bootstrap over a user study's directions."""
    errors.check_seed(seed)
    return seed


def balance(seed: int) -> int:
    """Return the seed of the classes of perfect samples."""
    return _mixed(seed, 0, 5)


def found(seed: int) -> int:
    """Return the seed of everything random in a method that finds directions, but for x_T."""
    return _mixed(seed, 0, 7)


def found_on(seed: int) -> int:
    """Return the seed of the starting noise of the samples that a method looks at, which no measurement draws."""
    return _mixed(seed, 0, 8)


def gradient_batch(seed: int, i: int) -> int:
    """Return the seed of everything random in the batch i on which gradients are compared."""
    return _mixed(seed, i, 9)


def real_halves() -> int:
    """Return the seed of the split of real images into two halves, always the same."""
    return 0


def _mixed(*entropy: int) -> int:
    """Return 63 well-mixed bits of the given non-negative numbers, seed first; zeros at the end do not count."""
    errors.check_seed(entropy[0])
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
