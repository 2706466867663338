"""Training of the diffusion model and of directions, and strategies that fit it into memory."""
