"""Embed a corpus with Ray Data on many cores or GPUs, or with sentence-transformers on one machine."""
