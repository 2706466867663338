"""What makes weights: the diffusion model, the directions, and how to fit their training into memory."""
