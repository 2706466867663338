"""Training of the diffusion model and of directions, within the memory there is."""
