"""Search a folder: an index on disk, a command line, a page."""
