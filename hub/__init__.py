"""Checkpoints: building them here, and later converting and publishing them."""
