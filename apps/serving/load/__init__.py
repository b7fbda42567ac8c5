"""Load for the server: many clients, hostile bodies, clients that hang up; ``python -m plume.apps.serving.load``."""
