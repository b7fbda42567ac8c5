"""What the examples share: bounded media, a folder as documents, one encoder."""
