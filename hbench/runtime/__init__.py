"""The machine: devices, processes, memory and progress; it knows nothing of diffusion."""
