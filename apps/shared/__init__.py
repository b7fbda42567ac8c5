"""What the apps share: bounded media, a folder as documents, one encoder."""
