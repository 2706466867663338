"""Studies that are made up, and the marks of their assessors."""

import csv

import torch

from hbench.evaluation.mos.study import Direction, design

HEADER = "sheet,assessor,item,mark,name"


def make_images(run="runs/a", directions=6, controls=2):
    generator = torch.Generator().manual_seed(0)

    def grid():
        return torch.randint(256, (2, 3, 1, 8, 8), dtype=torch.uint8, generator=generator)

    return {
        Direction(run, k, control): grid() for control in (False, True) for k in range((directions, controls)[control])
    }


def make_key(assessors=3, votes=None, repeats=0.25, **options):
    return design(make_images(**options), {options.get("run", "runs/a"): "T"}, assessors, votes or assessors, repeats)


def rows_of(key, mark=lambda sheet, item: (item.direction + int(sheet.assessor)) % 2, name=lambda sheet, item: ""):
    return [
        [sheet.sheet, sheet.assessor, str(item.item), str(mark(sheet, item)), name(sheet, item)]
        for sheet in key.sheets
        for item in sheet.items
    ]


def write_rows(path, rows, encoding="utf-8", **options):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, **options).writerows([HEADER.split(","), *rows])
    return path


def as_dict(marks):
    return {(mark.assessor, mark.item.item): mark.mark for mark in marks}
