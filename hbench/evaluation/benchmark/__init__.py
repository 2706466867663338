"""The bench: methods that find directions, measured alike on one frozen model."""
