"""Training PLUME: the explicit-to-latent curriculum on trl, exact at any batch size."""
