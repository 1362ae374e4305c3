"""Pictures of a report for a browser, as inline SVG that follows its colours; titles and names are escaped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from art_aft.experiments.reports.parts import escaped, paragraphs

# More bars than these cannot be told apart in one picture, and more fields of a matrix neither.
_MOST_BARS, _MOST_FIELDS = 40, 40


def meters(rows: Sequence[tuple[str, float, str, bool]], *, limit: float | None = None, most: float = 0.0) -> str:
    """
    Return horizontal bars, a line each.

    :param rows: Name, value, the value as text, and whether the bar is marked.
    :param limit: Where a line crosses all bars; None is nowhere.
    :param most: The value of a full bar, unless a greater one is there.
    """
    most = max(most, 1e-12, 1.05 * (limit or 0.0), *(value for _, value, _, _ in rows if math.isfinite(value)))
    at = "" if limit is None else f'<line class="limit" x1="{_part(limit, most)}" x2="{_part(limit, most)}" y2="10"/>'
    svg = '<svg viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
    lines = [
        f'<tr><th scope="row">{escaped(name)}</th><td class="bar">{svg}<rect class="{"marked" if marked else "plain"}" '
        f'width="{_part(value, most)}" height="10"/>{at}</svg></td><td>{escaped(shown)}</td></tr>'
        for name, value, shown, marked in rows
    ]
    return '<table class="meters">\n' + "\n".join(lines) + "\n</table>"


def _part(value: float, most: float) -> str:
    """Return a length in an SVG that is 1,000 wide."""
    return f"{1000 * min(max(value, 0.0), most) / most if math.isfinite(value) else 0.0:.1f}"


def bars(
    title: str, values: Sequence[float | None], *, first: int = 0, marked: int | None = None, most: float = 0.0
) -> str:
    """
    Return a picture of one value for each label, upright bars. Negative values hang down, unless all are negative:
    then bars stand on the lowest.

    :param title: What stands above.
    :param values: The values. None and infinite ones have no bar.
    :param first: The label of the first value.
    :param marked: The label whose bar is marked; None is no one.
    :param most: The value of a full bar, unless a greater one is there.
    """
    known = {first + at: float(v) for at, v in enumerate(values) if v is not None and math.isfinite(v)}
    labels = _shown_labels(range(first, first + len(values)), known, marked)
    # Where all values are negative, the highest should still have the highest bar.
    zero = min(known.values()) if known and max(known.values()) < 0 else 0.0
    low, high = min([zero, *known.values()]), max([zero + 1e-12, *([most] if most else []), *known.values()])
    width, scale = 300 / max(1, len(labels)), 100 / (high - low)
    parts, every = [], -(-len(labels) // 20)
    for place, label in enumerate(labels):
        value = known.get(label)
        if value is not None:
            parts.append(
                f'<rect class="{"marked" if label == marked else "plain"}" x="{(place + 0.1) * width:.1f}" '
                f'y="{4 + scale * (high - max(value, zero)):.1f}" width="{0.8 * width:.1f}" '
                f'height="{scale * abs(value - zero):.1f}"/>'
            )
        if place % every == 0 or label == marked:
            strong = ' class="marked"' if label == marked else ""
            parts.append(f'<text{strong} x="{(place + 0.5) * width:.1f}" y="118">{label}</text>')
    at = 4 + scale * (high - zero)
    parts.append(f'<line class="axis" x2="300" y1="{at:.1f}" y2="{at:.1f}"/>')
    notes = [f"Values from {min(known.values()):.3g} to {max(known.values()):.3g}."] if known else []
    notes += [f"The {len(labels)} of {len(values)} that differ most."] if len(labels) < len(values) else []
    notes += [f"{len(values) - len(known)} have no finite value."] if len(known) < len(values) else []
    return _card(title, "0 0 300 122", parts, " ".join(notes))


def _shown_labels(labels: range, known: Mapping[int, float], marked: int | None) -> Sequence[int]:
    """Return the labels that have a place: all, or where they are too many those that differ most from the median."""
    if len(labels) <= _MOST_BARS:
        return labels
    # No order tells which side is suspicious: of most scores the high one is, of masks the low one.
    middle = float(np.median(list(known.values()))) if known else 0.0
    order = sorted(known, key=lambda label: (label != marked, -abs(known[label] - middle), label))
    return sorted(order[:_MOST_BARS])


def matrix(title: str, shares: Sequence[Sequence[float]]) -> str:
    """
    Return a picture of shares, a field each: the stronger the colour, the higher the share.

    :param title: What stands above.
    :param shares: Shares in [0, 1], with a row for each true label.
    """
    size = len(shares)
    if size > _MOST_FIELDS:
        return paragraphs(f"{title}: {size} labels are too many for a picture; the JSON file has all shares.")
    side = 270 / size
    parts = [
        f'<rect class="marked" opacity="{min(max(share, 0.0), 1.0):.2f}" x="{26 + column * side:.1f}" '
        f'y="{4 + row * side:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
        for row, line in enumerate(shares)
        for column, share in enumerate(line)
        if share > 0.005
    ]
    parts.append('<rect class="frame" x="26" y="4" width="270" height="270"/>')
    for place in range(0, size, -(-size // 20)):
        parts.append(f'<text x="{26 + (place + 0.5) * side:.1f}" y="288">{place}</text>')
        parts.append(f'<text x="13" y="{8 + (place + 0.5) * side:.1f}">{place}</text>')
    return _card(title, "0 0 300 294", parts, "Rows: true labels. Columns: the labels that the model gives.")


def image(title: str, pixels: Sequence[Sequence[Sequence[int]]], note: str = "") -> str:
    """
    Return a small colour image.

    :param title: What stands above.
    :param pixels: Whole numbers from 0 to 255, of shape (H, W, 3).
    :param note: What stands below.
    """
    parts = []
    for row, line in enumerate(pixels):
        column = 0
        # Neighbours of one colour share a field, so that an image of few pixels stays a short text.
        for (red, green, blue), run in itertools.groupby(line):
            length = len(list(run))
            parts.append(f'<rect fill="rgb({red},{green},{blue})" x="{column}" y="{row}" width="{length}" height="1"/>')
            column += length
    # Smoothed edges would leave lines between the rows.
    parts = ['<g shape-rendering="crispEdges">', *parts, "</g>"]
    return _card(title, f"0 0 {len(pixels[0])} {len(pixels)}", parts, note)


def _card(title: str, box: str, parts: Sequence[str], note: str) -> str:
    """Return a picture with its title and a note."""
    below = f"<figcaption>{escaped(note)}</figcaption>" if note else ""
    drawn = f'<svg viewBox="{box}" role="img" aria-label="{escaped(title)}">\n' + "\n".join(parts) + "\n</svg>"
    return f"<figure><h4>{escaped(title)}</h4>\n{drawn}{below}</figure>"


def gallery(*pictures: str) -> str:
    """Return pictures side by side, as many as fit; they are markup."""
    return '<div class="gallery">\n' + "\n".join(pictures) + "\n</div>"
