"""Evaluation: retrieval tasks, baselines, cost and whether the latent steps are used."""
