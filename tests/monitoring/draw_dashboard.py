"""A picture of the dashboard: its own queries, asked of a real Prometheus that reads a real server under load.

    python -m tests.monitoring.draw_dashboard docs/pictures/dashboard.png

Grafana draws better; this shows without a Grafana what the panels hold, and says so at its foot. The load of about a
minute and a half: one caller, several, a crowd that gets refusals, a restart, several again.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from server.cores import usable_cores
from tests.conftest import ROOT
from tests.monitoring import load
from tests.monitoring.dashboard import GPU_ROW, Query, marks, panels, queries_of, rows
from tests.monitoring.stack import Series, Server, is_up, prometheus, query_range, wait_until

LABEL = "Drawn by us from the dashboard's queries, not a Grafana screenshot."
FLAGS = ("--queue-limit", "8", "--max-images", "4", "--max-wait-ms", "2000")
WINDOW = "10s"  # of the rates
INK, PALE, PAPER, GRID = "#24292f", "#57606a", "#ffffff", "#e5e8eb"
RESTART, REFUSED = "#e8820c", "#c0395a"
COLOURS = ["#3a7d44", "#e0b400", "#3f78c4", "#d9622b", "#8f5bb5", "#c0395a", "#2a9d9d", "#8a8f98", "#a8763e"]
CELL_W, CELL_H = 0.5, 0.22  # inches of a cell of the grid


@dataclass(frozen=True, slots=True)
class Recording:
    """Every panel's series by its title, and when the server was started again."""

    began: float
    ended: float
    series: dict[str, list[tuple[str, Series]]]  # with the names that the legend shows
    restarts: list[float]


def record() -> Recording:
    """Serve, load, restart, and ask what the dashboard asks."""
    sample = Image.open(ROOT / "docs" / "samples" / "nuclei.png").convert("RGB")
    boxes = [(0, 0, 512, 384), (0, 0, 256, 256), (256, 128, 512, 384), (128, 0, 384, 192)]
    pictures = [load.png(sample.crop(box)) for box in boxes]
    one: list[tuple[load.Caller, float]] = [(load.forms, 0.5)]
    several = [*one, (load.forms, 0.3), (load.album, 0.5), (load.mistakes, 2.0), (load.hang_up, 3.0)]
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(ROOT / "bundles", *FLAGS) as server,
        prometheus(Path(folder), server.port) as base,
    ):
        began = time.time()
        load.run(server.port, pictures, one, seconds=20)
        load.run(server.port, pictures, several, seconds=22)
        load.run(server.port, pictures, [*several, (load.crowd, 1.0)], seconds=16)
        server.stop()
        server.start()
        wait_until(lambda: is_up(base))
        load.run(server.port, pictures, several, seconds=25)
        ended = time.time()

        def ask(query: Query) -> list[Series]:
            return query_range(base, query.on(WINDOW), began, ended, step_s=1)

        series = {
            panel["title"]: [
                (query.label(labels), (labels, samples))
                for query in queries_of(panel)
                for labels, samples in ask(query)
            ]
            for panel in panels(without=(GPU_ROW,))
        }
        restarts = [min(at for at, _ in samples) for query in marks() for _, samples in ask(query)]
    return Recording(began, ended, series, restarts)


def draw(recording: Recording, path: Path) -> None:
    """Every panel at its place in the dashboard's grid."""
    mpl.use("Agg")
    plt.rcParams |= {"font.family": "DejaVu Sans", "font.size": 8, "text.color": INK, "axes.edgecolor": GRID}
    shown = list(panels(without=(GPU_ROW,)))
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in shown) + 2.5
    top = 3
    figure = plt.figure(figsize=(24 * CELL_W, (bottom + top) * CELL_H), dpi=130, facecolor=PAPER)

    def place(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """From cells, downwards, to the figure's left, bottom, width and height."""
        return x / 24, 1 - (y + h + top) / (bottom + top), w / 24, h / (bottom + top)

    left, low, _, height = place(0.15, -top, 0, top)
    figure.text(left, low + height * 0.45, "maskserve", fontsize=17, weight="bold", va="center")
    figure.text(left + 0.135, low + height * 0.42, LABEL, fontsize=10, va="center", color=INK)
    for row in rows():
        if row["title"] != GPU_ROW:
            x, y, _, h = place(0.15, row["gridPos"]["y"], 24, 1)
            figure.text(x, y + h * 0.3, row["title"], fontsize=11, weight="bold", va="center")
    for panel in shown:
        box = panel["gridPos"]
        below = 2.1 if panel["type"] == "timeseries" else 0.3  # the times and the legend
        axes = figure.add_axes(place(box["x"] + 1.25, box["y"] + 1.1, box["w"] - 1.55, box["h"] - 1.1 - below))
        draw_panel(axes, panel, recording)
    left, low, _, _ = place(0.15, bottom - 1.4, 0, 0)
    figure.text(left, low, foot(recording), fontsize=8.5, va="center", color=PALE)
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor=PAPER)
    Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def foot(recording: Recording) -> str:
    seconds = recording.ended - recording.began
    return (
        f"{seconds:.0f} seconds of a real server with the nuclei model, on {usable_cores()} CPU cores that it shares "
        f"with its callers; a real Prometheus\nread it once a second; rates over {WINDOW}. "
        "Orange: the server was restarted. Not drawn: the row for GPUs."
    )


def draw_panel(axes: Axes, panel: dict, recording: Recording) -> None:
    axes.set_title(panel["title"], loc="left", fontsize=9, weight="bold", pad=4)
    found = recording.series[panel["title"]]
    if panel["type"] != "timeseries":
        draw_words(axes, panel, found)
        return
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=7, colors=PALE)
    axes.set_xlim(0, recording.ended - recording.began)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, defaults["unit"])))
    draw_series(axes, panel, found, recording, stacked="stacking" in custom)
    if "scaleDistribution" in custom:
        axes.set_yscale("symlog", base=2, linthresh=1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0)
    for at in recording.restarts:
        axes.axvline(at - recording.began, color=RESTART, linewidth=1.2, linestyle=(0, (4, 2)))
    longest = max(len(name) for name, _ in found)
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=int(panel["gridPos"]["w"] * 10 / (longest + 6)),
        fontsize=6.8, frameon=False, handlelength=1.0, columnspacing=1.0, handletextpad=0.4, labelspacing=0.25,
    )  # fmt: skip


def draw_series(axes: Axes, panel: dict, found: list[tuple[str, Series]], recording: Recording, stacked: bool) -> None:
    """One second a step; where a series has no sample there is a gap, as in Grafana."""
    dashed = [entry["matcher"]["options"].split(" .*")[0] for entry in panel["fieldConfig"]["overrides"]]
    seconds = np.arange(int(recording.ended - recording.began) + 1)
    floor = np.zeros(len(seconds))
    for number, (name, (_, samples)) in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        values = np.full(len(seconds), np.nan)
        for at, value in samples:
            values[round(at - recording.began)] = value
        if stacked:
            axes.fill_between(seconds, floor, floor + values, color=colour, alpha=0.75, linewidth=0, label=name)
            floor += np.nan_to_num(values)
        elif any(name.startswith(word) for word in dashed):
            axes.plot(seconds, values, color=REFUSED, linewidth=1.0, linestyle=(0, (5, 3)), label=name)
        else:
            axes.plot(seconds, values, color=colour, linewidth=1.2, label=name)


def draw_words(axes: Axes, panel: dict, found: list[tuple[str, Series]]) -> None:
    """What a stat or a table says at the end."""
    axes.set_axis_off()
    (name, (labels, samples)), *_ = found
    if panel["type"] == "stat":
        state = panel["fieldConfig"]["defaults"]["mappings"][0]["options"][f"{samples[-1][1]:g}"]
        colour = {"green": COLOURS[0], "red": REFUSED}[state["color"]]
        axes.text(0.03, 0.55, f" {state['text']} ", fontsize=13, color=PAPER, va="center", backgroundcolor=colour)
        axes.text(0.36, 0.55, name, fontsize=9, va="center")
        return
    columns = panel["transformations"][0]["options"]["indexByName"]
    for column in columns:
        x = columns[column] / len(columns)
        axes.text(x, 0.75, column, fontsize=8, color=PALE, va="center")
        axes.text(x, 0.35, labels[column], fontsize=9, va="center")


def written(value: float, unit: str) -> str:
    """A number as Grafana would write it."""
    scales: dict[str, Callable[[float], str]] = {
        "percentunit": lambda share: f"{share * 100:.3g} %",
        "s": lambda seconds: f"{seconds * 1000:.3g} ms" if 0 < seconds < 1 else f"{seconds:.3g} s",
        "decbytes": lambda number: f"{number / 1000:.3g} kB" if number < 1e6 else f"{number / 1e6:.4g} MB",
        "reqps": lambda number: f"{number:.3g} req/s",
        "cps": lambda number: f"{number:.3g} /s",
        "short": lambda number: f"{number:.3g}",
    }
    return f"{value:.3g} {unit.removeprefix('suffix: ')}" if unit.startswith("suffix: ") else scales[unit](value)


def main() -> int:
    if len(sys.argv) != 2:
        print("python -m tests.monitoring.draw_dashboard OUT.png", file=sys.stderr)
        return 2
    draw(record(), Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
