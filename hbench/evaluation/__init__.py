"""What makes numbers: one file an artifact."""
