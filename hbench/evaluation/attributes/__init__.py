"""Attributes: what can be measured of a single image, such as slant or warmth, and what a classifier sees in it."""
