"""Ways to find directions in h-space without training a shift block: one :class:`Method` each."""
