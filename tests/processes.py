"""Processes forked from a server that has imported torch once for all of them."""

import atexit
import multiprocessing
import os
import socket
import sys

import torch

import hbench.training.pretrain
from hbench.cli import main

FORKS = multiprocessing.get_context("forkserver")
LIBRARIES = ["accelerate", "matplotlib.figure", "pytest", "sklearn.datasets"]
FORKS.set_forkserver_preload([*LIBRARIES, "hbench.evaluation.fid", "hbench.training.pretrain", "hbench.training.probe"])


def start(target, *arguments, log, **environment):
    """Return the process, just started, of a function of a module; what it prints goes to the file ``log``."""
    process = FORKS.Process(target=_run, args=(target, arguments, str(log), environment))
    process.start()
    return process


def start_command(words, log):
    """Return the process, just started, of a command line."""
    return start(run_command, [str(word) for word in words], log=log)


def start_ranks(count, target, *arguments, logs):
    """Return the processes of a run of several as torchrun starts them; what rank i prints goes to ``logs[i]``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [
        start(target, *arguments, log=logs[rank], RANK=str(rank), LOCAL_RANK=str(rank), **group, **sizes)
        for rank in range(count)
    ]


def run_command(words):
    sys.argv = ["hbench", *words]
    main(words, prog_name="hbench")


def _run(target, arguments, log, environment):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    hbench.training.pretrain.GRID_STEPS = 1  # as in conftest.py
    try:
        target(*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a process without them
