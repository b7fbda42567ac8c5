"""Shapes of random models, by name."""

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vision": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2},
        "mrope_section": [1, 1, 2],
        "vocab_size": None,
    },
    "small": {
        "text": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8},
        "vision": {"depth": 2, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 2},
        "mrope_section": [8, 12, 12],
        "vocab_size": None,
    },
    "0.2b": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12},
        "vision": {"depth": 8, "embed_dim": 512, "num_heads": 8, "mlp_ratio": 4},
        "mrope_section": [8, 12, 12],
        "vocab_size": 32000,
    },
    "2b": {
        "text": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
        "vision": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4},
        "mrope_section": [16, 24, 24],
        "vocab_size": 151936,
    },
}
