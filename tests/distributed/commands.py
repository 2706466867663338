"""Several commands in one process: ``python commands.py float64 '[["train", "digits16"], …]'``.

In float64, two trainings can be compared. In float32, Adam turns gradients that are zero but for rounding, such as
those of a discriminator that still sees x'_0 equal to x_0, or of a bias in front of a batch norm, into steps of the
full learning rate in a random direction; in float64 their rounding stays far below Adam's eps.
"""

import json
import sys

import torch

if sys.argv[1] == "float64":
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double

import hbench.training.pretrain
from hbench.cli import main

hbench.training.pretrain.GRID_STEPS = 1  # its sample grid would take most of the time

for arguments in json.loads(sys.argv[2]):
    main(arguments, prog_name="hbench", standalone_mode=False)
