"""What latent thinking costs, measured side by side."""
