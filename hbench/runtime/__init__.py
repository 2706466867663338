"""The machine: devices, processes, memory and progress; knows nothing of diffusion."""
