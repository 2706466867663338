"""Memory: what a training step uses, exactly or as the system sees it, and what the device has free."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import torch
from torch import Tensor

from hbench.errors import HBenchError

MIB = 2**20


class UnknownMemoryError(HBenchError):
    """This system does not say how much memory is used or free."""


CGROUP = Path("/sys/fs/cgroup")


def free_mib(device: torch.device) -> float:
    """MiB that this process could still take on a device, what PyTorch's allocator keeps in reserve included.

    On the CPU that is the memory which Linux says is available, or the limit of the container or the job (cgroup v2) if
    that is less.

    Raises:
        UnknownMemoryError: another system than Linux, and no GPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / MIB
    free_here = _proc("/proc/meminfo", "MemAvailable")
    for group in _groups():
        with suppress(OSError, ValueError):  # no limit
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            statistics = (group / "memory.stat").read_text(encoding="ascii").split()
            cache = int(statistics[statistics.index("inactive_file") + 1])  # given back when memory is asked for
            free_here = min(free_here, (limit - used + cache) / MIB)
    return free_here


def _groups() -> list[Path]:
    """The folders of this process's control group and of those around it."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::/"):
                inner = CGROUP / line.removeprefix("0::/")
                return [group for group in (inner, *inner.parents) if group.is_relative_to(CGROUP)]
    return [CGROUP]


@contextmanager
def watch_resident() -> Iterator[tuple[float, Callable[[], float], str]]:
    """A block, with this process's resident memory now, in MiB; a function for its peak since; and how that is known.

    From Linux's high-water mark, which is reset now: else it would tell of the imports, whose own peak hides a small
    experiment. Where it cannot be reset, resident memory is read every 2 ms.
    """
    with suppress(AttributeError, TypeError):  # other C libraries have none, and Windows no such library
        ctypes.CDLL(None).malloc_trim(0)  # else what is freed already would be used again without being seen
    baseline = _status_mib("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        reset = _status_mib("VmHWM") < baseline + 16  # the kernel counts pages loosely
    except (OSError, KeyError):
        reset = False
    if reset:
        yield baseline, lambda: _status_mib("VmHWM"), "peak RSS over baseline, from VmHWM"
        return
    highest, over = baseline, Event()

    def poll() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, _status_mib("VmRSS"))

    Thread(target=poll, daemon=True).start()
    try:
        yield baseline, lambda: highest, "peak RSS over baseline, polled every 2 ms"
    finally:
        over.set()


def _status_mib(name: str) -> float:
    return _proc("/proc/self/status", name)


def _proc(file: str, name: str) -> float:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UnknownMemoryError(
            "memory on the CPU is read from Linux's /proc, which is not here: use a CUDA device"
        ) from error
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) / 1024


def saved_tensors_peak(run: Callable[[], object], resident: Iterable[Tensor] = ()) -> int:
    """Largest number of bytes that autograd holds at one time while ``run`` runs, each storage counted once.

    It counts what is saved for the backward pass, but for tensors that are ``resident`` anyway, such as weights. It is
    exact: no allocator or library blurs it. Of torch.utils.checkpoint it sees what a block starts from, not what is
    recomputed inside.
    """
    held = {tensor.untyped_storage().data_ptr(): (1, 0) for tensor in resident}
    total = peak = 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal total, peak
            storage = tensor.untyped_storage()
            self.tensor, self.key = tensor, storage.data_ptr()
            count, size = held.get(self.key, (0, storage.nbytes()))
            held[self.key] = (count + 1, size)
            total += 0 if count else size
            peak = max(peak, total)

        def __del__(self) -> None:
            nonlocal total
            count, size = held.pop(self.key)
            if count > 1:
                held[self.key] = (count - 1, size)
            else:
                total -= size

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        run()
    return peak


def gpu_processes(device: torch.device) -> dict[int, int | None]:
    """Bytes that each process computing on the GPU holds there by NVML, by PID; None where the driver does not say.

    Raises:
        HBenchError: NVML does not work here.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid  # NVML's indices ignore CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError as error:
        raise UnknownMemoryError(
            f"NVML does not answer ({error}): install NVIDIA's driver with NVML, or use --device cpu"
        ) from error


def gpu_memory(device: torch.device, idle: int) -> tuple[float, str]:
    """MiB that this process holds on the GPU, its CUDA context included, and how it is known.

    By its PID; or, where NVML does not list it (PIDs in a container are not the host's) or does not know (Windows), as
    what the whole device holds over ``idle`` bytes, those before this process came.
    """
    own = gpu_processes(device).get(os.getpid())
    if own is not None:
        return own / MIB, "NVML, this process"
    return (torch.cuda.device_memory_used(device) - idle) / MIB, "NVML, the device over its idle state"
