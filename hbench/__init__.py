"""hbench: interpretable directions in the h-space of frozen, pretrained diffusion models."""

__version__ = "0.1.0"
