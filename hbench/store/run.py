"""Runs read back from disk; a name such as "mnist16" stands for a shipped run, an id for one of the Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from textwrap import shorten
from typing import get_args

import torch
from torch import Tensor

from hbench.config import Experiment, Precision
from hbench.core.backbone import DiffusionModel
from hbench.core.directions import Edit, Source, edited, magnitudes, own_direction
from hbench.core.sampler import BATCH, Sampler
from hbench.errors import MOST_COLUMNS, MOST_SEED, HBenchError, check_at_least, check_seed, counted, shown
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.models.adm import EncoderUNetModel
from hbench.models.reconstructor import LeNet, ResNet18
from hbench.models.shift import AnyShift
from hbench.runtime.device import pick_device
from hbench.runtime.progress import progress
from hbench.store.names import load_names
from hbench.store.pictures import Grid
from hbench.store.run_files import ROLES, WEIGHTS, locate, read_fixed, run_hashes
from hbench.store.weights import load_weights, read_experiment

LARGEST = torch.finfo(torch.float32).max
"""Largest size of a magnitude."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished discovery, ready for use: all networks frozen, in eval mode, on one device."""

    experiment: Experiment
    device: torch.device
    model: DiffusionModel
    shift_block: AnyShift
    """Shift block of a discovery, or directions that are fixed."""
    reconstructor: LeNet | ResNet18 | None = None
    """Network that tells directions apart; None for directions of a file that none was trained for yet."""
    discriminator: EncoderUNetModel | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that the run was read from."""
    names: dict[int, str] = field(default_factory=dict)
    """Names of directions, where somebody gave them."""
    folder: Path | None = None
    """Folder that the run was read from."""

    def __repr__(self) -> str:
        data, settings = self.experiment.data, self.experiment.discovery
        lines = [
            f"Run {self.experiment.title} on {self.device}",
            f"  images   {data.label}, {data.size}x{data.size}, {'grey' if data.channels == 1 else 'RGB'}",
            f"  K, S, M  {counted(self.K, 'direction')}, s in [{-self.S:g}, {self.S:g}], "
            f"{counted(settings.M, 'generation step')}",
        ]
        if self.names:
            shown = "; ".join(f"{k} {name}" for k, name in sorted(self.names.items()))
            lines.append(f"  names    {shorten(shown, 100, placeholder='; ...')}")
        return "\n".join(lines)

    @property
    def K(self) -> int:
        """Number of directions, which are 0..K-1."""
        return self.shift_block.K

    @property
    def S(self) -> float:
        """Largest magnitude of the training."""
        return self.experiment.discovery.S

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self.experiment.data.image_shape

    @cached_property
    def sampler(self) -> Sampler:
        """Diffusion model with the schedule, timesteps and precision of the discovery."""
        return Sampler.of(self.experiment, self.model, self.device)

    def noise(self, count: int, *, seed: int = 0, first: int = 0) -> Tensor:
        """Draw x_T of images ``first`` .. ``first + count - 1``: float32 [count, C, H, W], on the run's device.

        Image i depends only on (seed, i).

        Raises:
            ValueError: a negative number, or no image at all.
        """
        check_at_least(1, count=count)
        check_at_least(0, most=MOST_SEED, first=first)
        check_seed(seed)
        return self.sampler.noise(count, seed=seed, first=first)

    def generate(
        self, x_T: Tensor, edit: Edit | None = None, *, source: Source | None = None, steps: int | None = None
    ) -> Tensor:
        """Generate images from x_T by the regular process, or edited.

        Args:
            x_T: starting noise, [B, C, H, W].
            edit: magnitude of each direction, as in ``{3: 2.5, 7: -1.0}``; their shifts are added up. Magnitudes
                beyond ``S`` are allowed.
            source: kind of direction; each sample's own by default.
            steps: generation steps, 1..T; the run's M by default. Magnitudes keep their meaning.

        Returns:
            float32 [B, C, H, W] in about [-1, 1], unclamped, on the run's device. Cost: ``steps`` passes of the model
            for each image, with an edit almost twice as much.

        Raises:
            ValueError: wrong shape or type of number, no such direction, a magnitude that is not finite, or steps out
                of range.
            HBenchError: an image is not finite.
        """
        return self._generate(self._sampler(steps), x_T, edit, source)

    def invert(self, images: Tensor, *, steps: int = 100, precision: Precision = "float32") -> Tensor:
        """Return x_T of images [B, C, H, W] in [-1, 1] by DDIM inversion, on the run's device.

        The timesteps are those of a generation in as many steps, and nothing is clipped. The inversion is a little less
        exact with ``precision`` "bfloat16". Cost: ``steps`` passes of the model for each image.

        Raises:
            ValueError: wrong shape or type of number, no such precision, or steps out of 1..T.
        """
        self._check_images("images", images)
        sampler = self._sampler(steps, precision)
        batches = progress(images.split(BATCH), desc="inversion", unit="batch")
        return torch.cat([sampler.invert(batch.to(self.device)) for batch in batches])

    def edit(
        self,
        images: Tensor,
        edit: Edit,
        *,
        source: Source | None = None,
        steps: int = 100,
        precision: Precision = "float32",
    ) -> Tensor:
        """Invert images [B, C, H, W] in [-1, 1] and generate them again, edited; see :meth:`generate`.

        The empty edit ``{}`` is the reconstruction.

        Raises:
            ValueError: as :meth:`generate` and :meth:`invert` say.
        """
        self.check_edit(edit)
        sampler = self._sampler(steps, precision)
        return self._generate(sampler, self.invert(images, steps=steps, precision=precision), edit, source)

    def traverse(
        self,
        directions: Sequence[int] | None = None,
        *,
        examples: int | Sequence[int] = 6,
        samples: int = 5,
        seed: int = 0,
        source: Source | None = None,
    ) -> Grid:
        """Generate images along directions (Fig. 1).

        Args:
            directions: indices of the directions; all by default.
            examples: rows of each direction, the same x_T for all: the number of them, for x_T 0 .. ``examples`` - 1 of
                the seed, or the indices of the x_T.
            samples: columns, at least 2: s runs evenly from -S to S, so the middle of an odd number is the original.
            seed: seed of x_T.
            source: kind of direction; each sample's own by default.

        Returns:
            A grid that a notebook shows as a picture. Cost: one chain an example, and a shifted one for each image of
            another s than 0.

        Raises:
            ValueError: no such direction, or a number out of range.
        """
        chosen = list(range(self.K) if directions is None else directions)
        self.check_edit(dict.fromkeys(chosen, 0.0))
        chosen = [int(k) for k in chosen]
        if not isinstance(examples, Sequence):
            check_at_least(1, examples=examples)
            examples = range(examples)
        check_at_least(1, examples=len(examples), directions=len(chosen))
        check_at_least(2, most=MOST_COLUMNS, samples=samples)
        check_seed(seed)
        source = self._checked(source)
        x_T = torch.cat([self.noise(1, seed=seed, first=i) for i in examples])
        s = magnitudes(self.S, samples)
        values = torch.tensor(s)
        grid = torch.cartesian_prod(torch.tensor(chosen), torch.arange(len(examples)), torch.arange(samples))
        images = self.sampler.generate(x_T).cpu()[grid[:, 1]]
        shifted = values[grid[:, 2]].nonzero().squeeze(1)
        for batch in progress(shifted.split(BATCH), desc="grids", unit="batch"):
            k, example, column = grid[batch].to(self.device).unbind(1)
            images[batch] = self.sampler.generate(x_T[example], source(k, values.to(self.device)[column])).cpu()
        shape = len(chosen), len(examples), samples, *self.image_shape
        return Grid(images.reshape(shape), tuple(chosen), tuple(s), self.names)

    @property
    def own(self) -> Source:
        """Source of each sample's own directions."""
        return partial(own_direction, self.shift_block)

    def check_edit(self, edit: Edit) -> None:
        """Check an edit.

        Raises:
            ValueError: a direction outside 0..K-1, or a magnitude that is not finite in float32.
            TypeError: not a mapping, or a magnitude that is no number.
        """
        if not isinstance(edit, Mapping):
            raise TypeError(f"an edit is a dict of directions and magnitudes, as in {{3: 2.5}}, got {edit!r}")
        for k, s in edit.items():
            if isinstance(k, bool) or not hasattr(k, "__index__") or k not in range(self.K):
                raise ValueError(f"no direction {shown(k)}: the run has 0 to {self.K - 1}")
            if isinstance(s, bool) or not hasattr(s, "__float__"):
                raise TypeError(f"the magnitude of direction {k} must be a number, got {s!r}")
            # comparisons alone: a whole number may be too large to become a float
            if not -LARGEST <= s <= LARGEST:
                raise ValueError(
                    f"the magnitude of direction {k} must be finite, got {shown(s)}: float32 ends at {LARGEST:.2g}"
                )

    def _generate(self, sampler: Sampler, x_T: Tensor, edit: Edit | None, source: Source | None) -> Tensor:
        self._check_images("x_T", x_T)
        self.check_edit(edit or {})
        source = self._checked(source)
        images = []
        for batch in x_T.to(self.device).split(BATCH):
            shift = edited(source, [edit] * len(batch), self.device) if edit else None
            images.append(sampler.generate(batch, shift))
        found = torch.cat(images)
        if edit:
            refuse_overflow(found, [edit])
        if not bool(torch.isfinite(found).all()):
            raise HBenchError(
                f"a generated image is not finite: check x_T, with values of up to {x_T.abs().max():.3g} where noise "
                "has some 5, or the diffusion model"
            )
        return found

    def _sampler(self, steps: int | None, precision: Precision | None = None) -> Sampler:
        T = self.experiment.diffusion.T
        is_whole = hasattr(steps, "__index__") and not isinstance(steps, bool)
        if steps is not None and not (is_whole and 1 <= steps <= T):
            raise ValueError(f"steps must be in 1..{T}, got {shown(steps)}")
        if precision is not None and precision not in get_args(Precision):
            raise ValueError(f"precision must be {' or '.join(get_args(Precision))}, got {precision!r}")
        sampler = self.sampler.with_steps(steps)
        return replace(sampler, precision=precision) if precision else sampler

    def _checked(self, source: Source | None) -> Source:
        if source is not None and not callable(source):
            raise ValueError(f"source must be a function (k, s) -> delta_h, as direction_source makes, got {source!r}")
        return source or self.own

    def _check_images(self, name: str, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(images).__name__}")
        if images.dtype != torch.float32:
            hint = "; pixels of 0 to 255 become images by pixels.float() / 127.5 - 1" if name == "images" else ""
            raise ValueError(f"{name} must be float32, got {images.dtype}{hint}")
        if images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != self.image_shape:
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"{name} must be [B, {shape}] with B of at least 1, got {list(images.shape)}")
        if name == "images" and not (largest := images.abs().max()) <= 10:  # a sample's excess is small
            raise ValueError(f"images must be finite and in about [-1, 1], got values of up to {largest:g} in size")
        if not bool(torch.isfinite(images).all()):
            raise ValueError(f"{name} must be finite, and holds NaN or infinity")


def refuse_overflow(images: Tensor, edits: Sequence[Edit]) -> None:
    """Raise an HBenchError where edited images hold NaN or infinity: their magnitudes are too large for float32."""
    if not bool(torch.isfinite(images).all()):
        largest = max((abs(float(s)) for edit in edits for s in edit.values()), default=0.0)
        raise HBenchError(f"an image edited by |s| up to {largest:.3g} is not finite: take smaller magnitudes")


def judges_of(run: Run) -> tuple[LeNet | ResNet18, EncoderUNetModel]:
    """Return reconstructor and discriminator of a run.

    Raises:
        HBenchError: it has none, as directions of a file.
    """
    if run.reconstructor is None or run.discriminator is None:
        raise HBenchError("these directions have no reconstructor, which tells them apart: train one for them")
    return run.reconstructor, run.discriminator


def check_has_files(run: Run) -> None:
    """Raise an HBenchError where a run was not read from files, whose SHA-256 identifies it: it is still trained."""
    if not run.hashes:
        raise HBenchError("this run is still in training and has no files: finish it, and load it with load_run")


@torch.random.fork_rng(devices=[])
def load_run(path: str | Path, *, device: str | torch.device = "auto") -> Run:
    """Return the run in a folder, the shipped one of that name, or one of the Hugging Face Hub.

    Args:
        path: a folder that a discovery or an export wrote, the name of a shipped run, such as "mnist16", or an id of
            the Hugging Face Hub, which is downloaded unless it is in the Hub's cache.
        device: device of the run; "auto" is a GPU where there is one, else the CPU.

    Raises:
        HBenchError: not a run folder, unfinished, damaged, or with a file of another training.
    """
    hashes, folder, device = run_hashes(path), locate(path), pick_device(device)
    experiment = read_experiment(folder / "shift_block.safetensors")
    model = build_model(experiment)
    found = read_fixed(folder / f"shift_block{WEIGHTS}")
    run = Run(
        experiment=experiment,
        device=device,
        model=model,
        shift_block=build_shift_block(experiment, model) if found is None else found,
        reconstructor=build_reconstructor(experiment),
        discriminator=build_discriminator(experiment),
        hashes=hashes,
        names=load_names(folder, experiment.discovery.K),
        folder=folder,
    )
    for role in ROLES:
        module: torch.nn.Module = getattr(run, role)
        load_weights(folder / f"{role}.safetensors", module, role)
        module.to(device).eval().requires_grad_(False)
    return run
