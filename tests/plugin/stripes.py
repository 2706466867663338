"""A package with a data set of its own, whose attributes are beside: grey stripes, upright or level, of two widths."""

import torch

from hbench import DataSet, Factor, Labels, Pictures, Wanted

FACTORS = (Factor("direction", ("upright", "level")), Factor("width", ("narrow", "wide")))


def read(wanted: Wanted) -> Pictures:
    classes = torch.tensor([[i % 2, i // 2 % 2] for i in range(40)])
    rows = torch.arange(12)
    images = torch.empty(len(classes), 1, 12, 12, dtype=torch.uint8)
    for image, (is_level, is_wide) in zip(images, classes.tolist(), strict=True):
        line = (255 * (rows // (2 + is_wide) % 2)).to(torch.uint8)
        image[0] = line[:, None] if is_level else line
    return Pictures(images=images, labels=Labels(FACTORS, classes))


STRIPES = DataSet(title="stripes", read=read, source="the tests of hbench", licence="MIT", factors=FACTORS)
