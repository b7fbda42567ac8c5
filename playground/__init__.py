"""A synthetic world of look-up chains: data that anyone can draw again, offline, in the formats of the real corpora."""

from plume.playground.corpora import conditions, write_evaluation, write_training
from plume.playground.tasks import TASKS, draw_example

__all__ = ["TASKS", "conditions", "draw_example", "write_evaluation", "write_training"]
