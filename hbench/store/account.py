"""Account of a data set that was read: what was found, left out and done, and a hash of the pixels."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from hbench.config import Data
from hbench.errors import counted
from hbench.runtime.distributed import rank
from hbench.store.picture_files import Seen
from hbench.store.picture_folders import PACKED

NARROW = 64
"""Levels, of 256, that a picture with a fair contrast spans."""
SHOWN = 3
"""Number of names that a line shows of each reason."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Account:
    """What was read of a data set, and what became of it."""

    source: str
    """Name of the data set, and its folder where it has one."""
    found: int
    """Number of pictures found, without those in folders that were left out, and both parts of a set that is split."""
    used: int
    """Number of pictures in the tensor."""
    split: str
    """Part of the set that is used: "train", "test", or "reference" for all pictures of a folder."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of files and folders that were left out, by reason; those of folders end with a slash."""
    modes: Mapping[str, int]
    """Number of pictures read of each of Pillow's modes."""
    smallest: tuple[int, int]
    """Smallest width and smallest height."""
    largest: tuple[int, int]
    """Largest width and largest height."""
    shape: tuple[int, int, int]
    """Shape (C, H, W) of an image."""
    stored: tuple[int, int] | None = None
    """Smallest and largest value of the pictures of 16 or 32 bits; None if there are none."""
    transparent: int = 0
    """Number of pictures that were put on the background."""
    background: str = "white"
    cropped: int = 0
    """Number of pictures that were cropped to the middle."""
    enlarged: int = 0
    """Number of pictures that are smaller than the images."""
    more_frames: int = 0
    """Number of pictures of which only the first frame was read."""
    values: tuple[int, int]
    """Smallest and largest value of the pixels used, of 0..255."""
    narrow: int
    """Number of images used whose pixels span less than a quarter of 0..255."""
    plain: int
    """Number of images used of a single colour."""
    distinct: int
    """Number of different images among those used."""
    published: bool = True
    """False if the images are not those that were published under the data set's name."""
    sha256: str
    """SHA-256 of the pixels used and their shape; it depends on no path."""
    unlike: str = ""
    """How the images differ from those published, and what follows; empty where they do not."""

    def to_json(self) -> dict[str, Any]:
        """Return the account for a provenance, with counts in place of names and no path."""
        values = asdict(self) | {"left_out": {reason: len(names) for reason, names in self.left_out.items()}}
        del values["source"], values["unlike"]
        return values

    def lines(self) -> list[str]:
        """Return the account in two lines: what was found, and what was done."""
        split = {"train": " to train on", "test": " for tests"}.get(self.split, "")
        if split and sum(self.modes.values()) > self.used:
            split += " (each tenth is kept for tests)" if self.split == "train" else " (each tenth)"
        counts = f"{self.source}: {self.found:,} found, {self.used:,} used{split}"
        left_out = [f"{len(names):,} {reason} ({_shown(names)})" for reason, names in self.left_out.items()]
        channels, height, width = self.shape
        done = [f"{_size(self.smallest, self.largest)} pixels -> {width}x{height} {'L' if channels == 1 else 'RGB'}"]
        done += [f"{self.cropped:,} cropped to the middle"] * bool(self.cropped)
        done += [f"{self.enlarged:,} enlarged"] * bool(self.enlarged)
        done += [f"{self.transparent:,} transparent, put on {self.background}"] * bool(self.transparent)
        done += [f"{self.more_frames:,} by their first frame alone"] * bool(self.more_frames)
        stored = " (values {}..{})".format(*self.stored) if self.stored else ""
        modes = [f"{mode} {count:,}{stored * mode.startswith('I')}" for mode, count in self.modes.items()]
        values = f"values {self.values[0]}..{self.values[1]} of 0..255"
        return [
            "; left out: ".join([counts, ", ".join(left_out)] if left_out else [counts]),
            "; ".join([", ".join(modes), ", ".join(done), values]),
        ]

    def warnings(self) -> list[str]:
        """Return what is probably not as it should be, with its remedy, a line each."""
        found = []
        few_bits = self.stored is not None and 0 < self.stored[1] < 65536 // 4
        if self.stored and (self.stored[0] < 0 or self.stored[1] > 65535):
            found.append(
                f"pictures hold values {self.stored[0]}..{self.stored[1]}, and all beyond 0..65535 became black or "
                "white: save them with 16 bits"
            )
        elif self.stored and few_bits:
            bits = self.stored[1].bit_length()
            found.append(
                f"the pictures of 16 bits hold values of at most {self.stored[1]}, as {bits} bits do, and are nearly "
                f"black: multiply their values by {2 ** (16 - bits)} and save them again"
            )
        if 2 * self.narrow > self.used and not few_bits:
            plain = 2 * self.plain > self.used
            what = "are of a single colour" if plain else "span less than a quarter of 0..255"
            remedy = "raise their contrast, or remove them"
            if self.transparent:
                remedy = "if they are drawn on transparent ground, set another data.background"
            found.append(f"{self.plain if plain else self.narrow:,} of {counted(self.used, 'image')} {what}: {remedy}")
        if self.used > 1 and 2 * self.distinct <= self.used:
            found.append(f"{self.used:,} images are only {counted(self.distinct, 'different one')}: remove the copies")
        if self.unlike:
            found.append(f"{self.source}: {self.unlike}")
        return found

    def say(self) -> None:
        """Log the lines and the warnings, from the main process alone."""
        if rank() == 0:
            for line in self.lines():
                log.info(line)
            for line in self.warnings():
                log.warning("warning: %s", line)


def account(
    source: str,
    images: Tensor,
    seen: Sequence[Seen],
    data: Data,
    split: str,
    left_out: Mapping[str, Sequence[str]] | None = None,
    *,
    unlike: str = "",
) -> Account:
    """Return the account of a data set.

    Args:
        source: name of the data set.
        images: images used, uint8 [N, C, H, W].
        seen: what each picture read was like, those not used included.
        data: settings by which they were read.
        split: part of the set that is used.
        left_out: names of what was left out, by reason.
        unlike: how the images differ from those published under the data set's name; empty where they do not.
    """
    left_out = left_out or {}
    pictures_left_out = sum(
        not name.endswith("/") for reason, names in left_out.items() if reason != PACKED for name in names
    )
    deep = [each.stored for each in seen if each.stored]
    widths, heights = zip(*(each.size for each in seen), strict=True)
    low, high = images.flatten(2).amin(2).int(), images.flatten(2).amax(2).int()  # of each channel
    return Account(
        source=source,
        found=len(seen) + pictures_left_out,
        used=len(images),
        split=split,
        left_out=left_out,
        modes=dict(Counter(each.mode for each in seen).most_common()),
        smallest=(min(widths), min(heights)),
        largest=(max(widths), max(heights)),
        shape=data.image_shape,
        stored=(min(each[0] for each in deep), max(each[1] for each in deep)) if deep else None,
        transparent=sum(each.transparent for each in seen),
        background=data.background,
        cropped=sum(width != height for width, height in zip(widths, heights, strict=True)),
        enlarged=sum(min(each.size) < data.size for each in seen),
        more_frames=sum(each.more_frames for each in seen),
        values=(int(low.min()), int(high.max())) if len(images) else (0, 0),
        narrow=int((high.amax(1) - low.amin(1) < NARROW).sum()),
        plain=int((low == high).all(1).sum()),
        distinct=len({hash(image.numpy().tobytes()) for image in images}),
        published=not unlike,
        sha256=content_sha256(images),
        unlike=unlike,
    )


def content_sha256(images: Tensor) -> str:
    """Return the SHA-256 of images, of their shape and their bytes in order."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _shown(names: Sequence[str]) -> str:
    """Return the first names, and a mark if there are more."""
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])


def _size(smallest: tuple[int, int], largest: tuple[int, int]) -> str:
    """Return the range of sizes in words, as in "20x24" or "20x24 to 64x48"."""
    sizes = [f"{width}x{height}" for width, height in (smallest, largest)]
    return " to ".join(dict.fromkeys(sizes))
