"""Commands in processes of their own, forked from a server that has imported torch once for all of them."""

import multiprocessing
import os
import sys

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "hbench.evaluation.fid", "hbench.training.pretrain", "matplotlib.figure", "sklearn.datasets"]
)


def run_command(words, log, environment):
    """Do as the command line would, with what it prints in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    sys.argv = ["hbench", *words]
    import torch

    import hbench.training.pretrain
    from hbench.cli import main

    torch.set_num_threads(1)
    hbench.training.pretrain.GRID_STEPS = 1
    main(words, prog_name="hbench")


def start_command(words, log, **environment):
    """Return the process of a command that has just been started."""
    process = FORKS.Process(target=run_command, args=([str(word) for word in words], str(log), environment))
    process.start()
    return process
