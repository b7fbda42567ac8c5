"""What the page shows: result cards, and two small plots of the query's latent thinking (plain SVG)."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np

from plume.apps.search.store import Hit
from plume.apps.shared.batches import as_array

_LABEL_RADIUS = 9  # pixels


def draw_hits(hits: Sequence[Hit]) -> str:
    """Ranked results as cards."""
    if not hits:
        return '<p class="note">Nothing is indexed that fits. Widen the kinds, or index a folder first.</p>'
    best = max(hits[0].score, 1e-6)
    return f'<ol class="hits">{"".join(_card(rank, hit, best) for rank, hit in enumerate(hits, start=1))}</ol>'


def _card(rank: int, hit: Hit, best: float) -> str:
    """One result. All that the index says, which came from files and tables, is escaped here and nowhere else."""
    address = quote(hit.id, safe="")
    path, kind, text = escape(hit.path), escape(hit.kind), escape(hit.text)
    name = path.rsplit("/", 1)[-1]
    part, parts, share = int(hit.part), int(hit.parts), max(0.0, min(1.0, hit.score / best))

    place = f", {'passage' if kind == 'text' else 'page'} {part} of {parts}" if parts > 1 else ""
    shown = (
        f"<blockquote>{text}</blockquote>"
        if kind == "text"
        else f'<img src="/preview/{address}" alt="{name}" loading="lazy">'
    )
    return (
        f'<li class="hit" data-path="{path}" data-kind="{kind}">'
        f'<a class="shown" href="/original/{address}#page={part}" target="_blank" rel="noopener">{shown}</a>'
        f'<div class="line"><span class="rank">{rank}</span><span class="name" title="{path}">{name}</span>'
        f'<span class="score">{hit.score:.3f}</span></div>'
        f'<div class="bar"><i style="width:{share:.0%}"></i></div>'
        f'<div class="kind">{kind}{place}</div></li>'
    )


def draw_thinking(latent_states: Any, router_probs: Any, num_active: int) -> str:
    """The latent trajectory and the expert use of one query, side by side.

    Args:
        latent_states: z(1)..z(K), ``(K, D)``, of either encoder.
        router_probs: pi(1)..pi(K), ``(K, E)``, likewise.
        num_active: Experts that are mixed in each step.
    """
    if len(latent_states) == 0:
        return '<p class="note">K = 0: the query was embedded without latent thinking.</p>'
    latent_states, router_probs = as_array(latent_states), as_array(router_probs)
    return (
        f'<div class="plots"><figure>{_trajectory(latent_states)}<figcaption>Latent trajectory: z(1) to z(K) on their '
        f"two main axes. Short steps mean that thinking has settled.</figcaption></figure>"
        f"<figure>{_experts(router_probs, num_active)}<figcaption>Expert use: share of each expert per step; "
        f"the framed ones were mixed.</figcaption></figure></div>"
    )


def project(states_KD: np.ndarray) -> np.ndarray:
    """States on their two principal axes, ``(K, 2)``."""
    centered_KD = states_KD - states_KD.mean(axis=0)
    left, scale, _ = np.linalg.svd(centered_KD, full_matrices=False)
    points = np.zeros((len(states_KD), 2))
    axes = min(2, len(scale))
    points[:, :axes] = (left * scale)[:, :axes]
    return points


def _trajectory(latent_states: np.ndarray, width: int = 300, height: int = 210, margin: int = 24) -> str:
    points = project(latent_states.astype(np.float64))
    center, extent = (points.max(axis=0) + points.min(axis=0)) / 2, np.ptp(points, axis=0)
    zoom = min((width - 2 * margin) / max(extent[0], 1e-9), (height - 2 * margin) / max(extent[1], 1e-9))
    zoom = zoom if extent.max() > 1e-6 else 0.0
    places = [(width / 2 + zoom * x, height / 2 - zoom * y) for x, y in points - center]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    labels = spread(places, 2 * _LABEL_RADIUS + 1, (width, height))
    leaders = "".join(
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'
        for (x, y), (to_x, to_y) in zip(places, labels, strict=True)
    )
    dots = "".join(f'<circle class="state" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places)
    steps = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_LABEL_RADIUS}"/>'
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" class="step">{k}</text>'
        for k, (x, y) in enumerate(labels, start=1)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Latent trajectory of {len(places)} steps">'
        f'<polyline points="{path}"/>{leaders}{dots}{steps}</svg>'
    )


def spread(places: Sequence[tuple[float, float]], distance: float, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Where labels are printed: at their places, or near them where they would touch a label before.

    Args:
        places: Points, in pixels.
        distance: Between two labels, at least.
        size: Width and height, which labels do not leave.
    """
    circle = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 24, endpoint=False)]
    around = [(0.0, 0.0), *((ring * distance * x, ring * distance * y) for ring in range(1, 20) for x, y in circle)]
    printed: list[tuple[float, float]] = []
    for x, y in places:
        tried = ((x + right, y + down) for right, down in around)
        inside = (
            one
            for one in tried
            if all(distance / 2 <= at <= most - distance / 2 for at, most in zip(one, size, strict=True))
        )
        free = (one for one in inside if all(math.dist(one, other) >= distance for other in printed))
        printed.append(next(free, (x, y)))
    return printed


def _experts(router_probs: np.ndarray, num_active: int, cell: int = 34, left: int = 60, top: int = 22) -> str:
    steps, experts = router_probs.shape
    squares = []
    for k, row in enumerate(router_probs):
        active = set(np.argsort(-row)[:num_active].tolist())
        squares.append(f'<text x="{left + k * cell + cell / 2}" y="14" class="axis">{k + 1}</text>')
        for m, share in enumerate(row):
            frame = "on" if m in active else "off"
            squares.append(
                f'<rect x="{left + k * cell + 2}" y="{top + m * cell + 2}" width="{cell - 4}" height="{cell - 4}" '
                f'rx="4" class="{frame}" style="fill-opacity:{share:.2f}"><title>step {k + 1}, expert {m + 1}: '
                f"{share:.0%}</title></rect>"
            )
    names = "".join(
        f'<text x="{left - 8}" y="{top + m * cell + cell / 2 + 4}" class="name">expert {m + 1}</text>'
        for m in range(experts)
    )
    size = f"0 0 {left + steps * cell + 4} {top + experts * cell + 4}"
    return (
        f'<svg viewBox="{size}" role="img" aria-label="Share of each expert per step">{names}{"".join(squares)}</svg>'
    )
