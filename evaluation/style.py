"""How pictures look: quiet axes, and colours that stay apart without colour vision (Okabe and Ito)."""

from typing import Any

BLACK, BLUE, VERMILION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, BLACK)

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "xtick.color": "#666666",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}
