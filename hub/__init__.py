"""Checkpoints: random ones, converted ones, their checks and their way to the Hub.

This file is light: the command line reads the names below before it imports anything heavy.
"""

# Plain backbones by their model_type; UME-R1 and the released PLUME build on the first.
BACKBONES = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}
MODEL_TYPES = tuple(BACKBONES)
KINDS = (*BACKBONES.values(), "ume-r1", "plume")  # layouts of published checkpoints
