"""Runs read back from disk; a name such as "mnist16" stands for a shipped run, an id for one of the Hub."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from textwrap import shorten
from typing import get_args

import torch
from safetensors import safe_open
from torch import Tensor

from hbench.config import Experiment, Precision
from hbench.core.backbone import DiffusionModel
from hbench.core.directions import Edit, Source, edited, magnitudes, own_direction
from hbench.core.sampler import BATCH, Sampler
from hbench.errors import MOST_COLUMNS, MOST_SEED, HBenchError, check_at_least, check_seed, counted, shown
from hbench.experiments import parse_experiment
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.models.adm import EncoderUNetModel
from hbench.models.reconstructor import LeNet, ResNet18
from hbench.models.shift import AnyShift, FixedDirections
from hbench.runtime.device import pick_device
from hbench.runtime.progress import progress
from hbench.store.files import a_path, write_text
from hbench.store.folders import EXPERIMENT, refuse_links
from hbench.store.foreign import is_hub_id, refuse_elsewhere
from hbench.store.hub import hub_entry, snapshot
from hbench.store.pictures import Grid
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import REMEDY, Provenance, checked_sha256
from hbench.store.shipped import SHIPPED, shipped, unhiding
from hbench.store.weights import (
    load_weights,
    read_experiment,
    read_metadata,
    read_written_experiment,
)
from hbench.text import read_text

ROLES = ("model", "shift_block", "reconstructor", "discriminator")
"""Networks of a run; each has a file of its name."""
WEIGHTS = ".safetensors"
"""Suffix of a file that carries its settings."""
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


def locate(path: str | Path) -> Path:
    """Return the path itself, or where nothing lies there, the shipped run or the folder of the Hub of that name.

    Raises:
        HBenchError: no path at all, a link leads out of a folder there, which may have come from anyone, or the Hugging
            Face Hub has no such id.
    """
    path = a_path(path)
    shipped = SHIPPED / path
    if not path.exists() and is_hub_id(path):
        path = snapshot(path.as_posix())
    if path.is_dir():
        refuse_links(hub_entry(path) or path)  # those of a snapshot lead to other folders of its entry
    if not path.exists() and len(path.parts) == 1 and shipped.is_dir():
        return shipped
    return path


def run_hashes(path: str | Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file of a run, by role, after comparing them with those of its provenance.

    Raises:
        HBenchError: not a run folder, unfinished, a damaged provenance, or a file of another training.
    """
    folder = locate(path)
    if not (folder / f"shift_block{WEIGHTS}").is_file():
        refuse_elsewhere(folder, f"give the folder of a run, which a discovery wrote, or {shipped()}")
    if folder.is_file():
        raise HBenchError(f"{path}: is a file, and a run is a folder that a discovery wrote: give one, or {shipped()}")
    if not folder.is_dir():
        raise HBenchError(f"{path}: no such run: give the folder of one, or {shipped()}")
    # the provenance is written last
    missing = [name for name in (*(f"{role}{WEIGHTS}" for role in ROLES), PROVENANCE) if not (folder / name).is_file()]
    if missing:
        remedy = "train it, or resume its training if it was stopped"
        if (folder / "train" / f"shift_block{WEIGHTS}").is_file():
            remedy = f"the run is {folder / 'train'}"
        elif (folder / "samples").is_dir():  # a pretraining has them
            remedy = "it is a diffusion model, of which directions are to be trained first"
        raise HBenchError(
            f"{folder}: no finished discovery there ({missing[0]} is missing): {remedy}{unhiding(folder)}"
        )
    files = {role: folder / f"{role}{WEIGHTS}" for role in ROLES}
    for file in files.values():
        read_metadata(file)  # what is damaged, or of a newer hbench, is called so
    origin = origin_of_training(folder)
    if origin is None or not isinstance(origin.weights, dict) or not origin.weights.keys() >= set(ROLES):
        raise HBenchError(f"{folder / PROVENANCE}: is not that of a discovery: {REMEDY}")
    return {role: checked_sha256(file) for role, file in files.items()}


def origin_of_training(folder: Path) -> Provenance | None:
    """Return the provenance of a finished training, after comparing its settings with ``experiment.json``.

    Return None for an unfinished training, which has no provenance yet.

    Raises:
        HBenchError: one of both is damaged, or they are of different trainings.
    """
    if not (folder / PROVENANCE).is_file():
        return None
    origin = Provenance.read(folder / PROVENANCE, REMEDY)
    file = folder / EXPERIMENT
    if file.is_file() and origin.experiment is not None:
        trained = parse_experiment(origin.experiment, str(folder / PROVENANCE))
        written = read_written_experiment(file)
        if written.model_copy(update={"paper": trained.paper}) != trained:
            raise HBenchError(f"{file}: is not the file that {PROVENANCE} beside it was written with: {REMEDY}")
    return origin


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


def read_fixed(file: Path) -> FixedDirections | None:
    """Return the fixed directions in the file of a shift block; None where it holds a block.

    Raises:
        HBenchError: the file is damaged.
    """
    with safe_open(file, "pt") as opened:
        if not {"delta_h", "timesteps"} <= set(opened.keys()):
            return None
        delta_h, timesteps = opened.get_tensor("delta_h"), opened.get_tensor("timesteps")
    if delta_h.ndim != 5 or timesteps.shape != delta_h.shape[1:2] or not timesteps.numel():
        raise HBenchError(
            f"{file}: damaged ({list(delta_h.shape)} directions, {list(timesteps.shape)} timesteps): {REMEDY}"
        )
    return FixedDirections(delta_h, timesteps.tolist())


def load_names(path: str | Path, K: int | None = None) -> dict[int, str]:
    """Return the names of directions in a run's ``names.txt``, lines of ``index: name``; none without that file.

    Args:
        path: folder of the run, or the name of a shipped one.
        K: number of directions that the run has; None to take any index.

    Raises:
        HBenchError: a line has another form, a direction twice or one that the run lacks, or the file is not UTF-8.
    """
    file = locate(path) / "names.txt"
    names: dict[int, str] = {}
    if not file.is_file():
        return names
    try:
        lines = read_text(file).splitlines()
    except UnicodeDecodeError as error:
        raise HBenchError(f"{file}: not UTF-8: save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        index, colon, name = line.partition(":")
        if not (colon and re.fullmatch("[0-9]{1,9}", index.strip())):
            raise HBenchError(f'{file}, line {number}: write "index: name", for example "3: thickness"')
        k = int(index)
        if k in names:
            raise HBenchError(f"{file}, line {number}: direction {k} has a name already: leave one of them out")
        if K is not None and k >= K:
            raise HBenchError(f"{file}, line {number}: no direction {k}: the run has 0 to {K - 1}")
        names[k] = name.strip()
    return names


def add_names(path: str | Path, names: Mapping[int, str]) -> list[int]:
    """Add lines to a run's ``names.txt`` for directions that have no name there, and return these.

    What somebody wrote stays as it is, a name that was left empty, too.

    Args:
        path: folder of the run.
        names: name of each direction.

    Raises:
        HBenchError: the run is a shipped one, or the file is damaged or cannot be written.
    """
    folder = locate(path)
    check_takes_names(path)
    known = load_names(folder)
    added = {k: name for k, name in sorted(names.items()) if k not in known}
    if added:
        file = folder / "names.txt"
        text = read_text(file).rstrip("\n") + "\n" if known else ""
        write_text(file, text + "".join(f"{k}: {name}\n" for k, name in added.items()))
    return list(added)


def check_takes_names(path: str | Path) -> None:
    """Raise an HBenchError where a run is a shipped one, or one of the Hub's cache, whose folders stay as they are."""
    folder = locate(path)
    if folder.resolve().is_relative_to(SHIPPED.resolve()):
        raise HBenchError(f"{path}: is shipped with hbench, and keeps its names: copy its folder, and name that")
    if hub_entry(folder):
        raise HBenchError(f"{path}: is of the Hugging Face Hub, and keeps its names: copy {folder}, and name that")
