"""Parts of the report: tables, bars, histograms, spectrograms, players, as HTML and SVG text."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from speechgpt2.data.pipeline.shar import flac
from speechgpt2.dsp.spectrum import decibels, power

BARS = 40  # bars of a histogram
WIDTH, HEIGHT = 320, 110  # size of a histogram, in pixels
RANGE = 80.0  # range of a spectrogram, in dB

STYLE = """
:root { color-scheme: light dark; --kept: #1f8a70; --rejected: #d1495b; --line: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.lead { font-size: 1.2rem; } .quiet { opacity: .7; font-size: .9rem; }
.kept { color: var(--kept); } .rejected { color: var(--rejected); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
figure img { width: 100%; height: 130px; border-radius: 4px; } audio { width: 100%; height: 34px; }
.step { display: grid; grid-template: "name bar size" / 9rem 1fr 9rem; gap: 0 .8rem; margin: .25rem 0; }
.step span { grid-area: name; text-align: right; } .step em { grid-area: size; font-style: normal; }
.step div { grid-area: bar; } .step i { display: block; height: 1.1rem; min-width: 1px; border-radius: 2px; }
@media (max-width: 600px) {
  body { margin: 1rem auto; } .grid { grid-template-columns: 1fr; }
  .step { grid-template: "name size" "bar bar" / 1fr auto; margin-bottom: .5rem; } .step span { text-align: left; }
}
.wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .2rem .9rem .2rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg text { fill: currentColor; font-size: 12px; } svg { max-width: 100%; }
"""


def page(title: str, body: str) -> str:
    """Return a complete HTML page; `body` is HTML."""
    name = html.escape(title)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{name}</title><style>{STYLE}</style><body><h1>{name}</h1>{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; text is escaped."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{lines}</table></div>"


def waterfall(steps: Sequence[tuple[str, float, int]]) -> str:
    """Return a bar for each (name, hours, clips).

    Bars of positive hours start at zero; a bar of negative hours goes back from the end of the previous one.
    """
    total, at, lines = max(steps[0][1], 1e-9), 0.0, []
    for number, (name, hours, clips) in enumerate(steps):
        start = at + hours if hours < 0 else 0.0
        at = start if hours < 0 else hours
        colour = "rejected" if 0 < number < len(steps) - 1 else "kept"
        bar = f"margin-left:{start / total:.2%};width:{abs(hours) / total:.2%};background:var(--{colour})"
        size = f"{length(hours)} · {clips}"
        lines.append(
            f"<div class=step><span>{html.escape(name)}</span><div><i style='{bar}'></i></div><em>{size}</em></div>"
        )
    return "".join(lines)


def length(hours: float) -> str:
    """Format hours, or minutes where there are few."""
    return f"{abs(hours):.2f} h" if abs(hours) >= 1 else f"{abs(hours) * 60:.1f} min"


def histogram(
    name: str, low: float, high: float, kept: np.ndarray, rejected: np.ndarray, thresholds: Sequence[float]
) -> str:
    """Return a histogram of kept and rejected counts `[BARS]`, stacked; values outside are in the outermost bars."""
    top, step = max(int((kept + rejected).max()), 1), WIDTH / BARS
    bars = []
    for bar in range(BARS):
        below, above = kept[bar] / top * HEIGHT, rejected[bar] / top * HEIGHT
        box = f"<rect x={bar * step:.1f} width={step - 1:.1f}"
        bars.append(f"{box} y={HEIGHT - below:.1f} height={below:.1f} fill='var(--kept)'/>" if below else "")
        y = HEIGHT - below - above
        bars.append(f"{box} y={y:.1f} height={above:.1f} fill='var(--rejected)'/>" if above else "")
    for threshold in thresholds:
        x = min(max((threshold - low) / (high - low), 0), 1) * WIDTH
        bars.append(
            f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={HEIGHT} stroke=currentColor stroke-dasharray=3 opacity=.7 />"
        )
    return (
        f"<figure><svg width={WIDTH} height={HEIGHT + 18} viewBox='0 0 {WIDTH} {HEIGHT + 18}'>{''.join(bars)}"
        f"<line x1=0 x2={WIDTH} y1={HEIGHT} y2={HEIGHT} stroke='var(--line)'/>"
        f"<text x=0 y={HEIGHT + 14}>{low:g}</text><text x={WIDTH} y={HEIGHT + 14} text-anchor=end>{high:g}</text></svg>"
        f"<figcaption>{html.escape(name)} (highest bar: {top})</figcaption></figure>"
    )


def spectrogram(pcm: np.ndarray) -> str:
    """Return a spectrogram of `pcm [N]` up to 12 kHz as an image; loud is bright."""
    levels = decibels(power(pcm, 512, max(240, len(pcm) // 600)))
    shade = np.clip((levels - levels.max() + RANGE) / RANGE, 0, 1).T[::-2]
    colours = np.stack([np.clip(shade * 2 - 0.4, 0, 1), np.clip(shade * 1.6 - 0.6, 0, 1), np.clip(shade * 1.4, 0, 0.9)])
    return f"<img alt=spectrogram src='data:image/png;base64,{_base64(_png((colours * 255).astype(np.uint8)))}'>"


def player(pcm: np.ndarray) -> str:
    """Return an audio player of `pcm [N]`."""
    return f"<audio controls preload=none src='data:audio/flac;base64,{_base64(flac(pcm))}'></audio>"


def _png(colours: np.ndarray) -> bytes:
    """Encode uint8 `[3, H, W]` as a PNG file."""
    _, height, width = colours.shape
    # Each row begins with its filter type, 0.
    rows = np.pad(colours.transpose(1, 2, 0).reshape(height, -1), ((0, 0), (1, 0)))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(np.ascontiguousarray(rows).tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
