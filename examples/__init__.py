"""Examples that use the package: run them from the checkout, as scripts or with ``python -m examples.NAME``."""
