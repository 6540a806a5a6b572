"""How the figures grow, as one SVG: a panel a question, both axes logarithmic."""

from __future__ import annotations

import math
from html import escape

Curves = dict[str, dict[str, list[tuple[float, float]]]]
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 440, 280, 62, 64, 46, 24
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
LETTER = 6.2  # pixels a letter takes, about


def svg(curves: Curves) -> str:
    """The whole picture, two panels a row; a panel's name is `title | x axis | y axis`."""
    rows = math.ceil(len(curves) / 2)
    width, height = 2 * WIDTH + GAP, rows * (HEIGHT + GAP)
    panels = [
        f'<g transform="translate({number % 2 * (WIDTH + GAP)},{number // 2 * (HEIGHT + GAP)})">'
        f"{_panel(name, lines)}</g>"
        for number, (name, lines) in enumerate(curves.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(name: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    title, across, up = (escape(part.strip()) for part in name.split("|"))
    points = [point for line in lines.values() for point in line]
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points])
    right, low = WIDTH - 24, HEIGHT - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        share_x = (math.log10(x) - x_low) / (x_high - x_low)
        share_y = (math.log10(max(y, 10.0**y_low)) - y_low) / (y_high - y_low)
        return LEFT + share_x * (right - LEFT), low - share_y * (low - TOP)

    out = [f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{title}</text>']
    for power in range(y_low, y_high + 1):
        _, y = at(10.0**x_low, 10.0**power)
        out.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(power)}</text>')
    for power in range(x_low, x_high + 1):
        x, _ = at(10.0**power, 10.0**y_low)
        out.append(f'<path d="M{x:.1f} {TOP}V{low}" stroke="#eee"/>')
        out.append(f'<text x="{x:.1f}" y="{low + 16}" text-anchor="middle">{_short(power)}</text>')
    middle = (LEFT + right) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{across}</text>')
    turned = f"translate(14,{(TOP + low) / 2}) rotate(-90)"
    out.append(f'<text transform="{turned}" text-anchor="middle">{up}</text>')
    words = _legend(list(lines), right)
    for number, (label, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        spots = [at(x, y) for x, y in line]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        out.append(f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        x, y = words[number]
        out.append(f'<text x="{x:.1f}" y="{y}" fill="{colour}">{escape(label)}</text>')
    return "".join(out)


def _legend(labels: list[str], right: float) -> list[tuple[float, int]]:
    """Where each label begins: one behind the other, in as many rows as it takes."""
    places: list[tuple[float, int]] = []
    x, y = float(LEFT), 34
    for label in labels:
        if x > LEFT and x + LETTER * len(label) > right:
            x, y = float(LEFT), y + 15
        places.append((x, y))
        x += LETTER * len(label) + 12
    return places


def _decades(values: list[float]) -> tuple[int, int]:
    logs = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return low, max(high, low + 1)


def _short(power: int) -> str:
    names = {3: "1 k", 4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M", 8: "100 M", 9: "1 G", 10: "10 G"}
    return names.get(power) or f"{10.0**power:g}"
