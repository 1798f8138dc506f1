"""The results as pictures, PNG and SVG, made from the JSON alone."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullFormatter

from .contenders import ALL, BY_NAME
from .report import Results, title_of
from .summary import Point, Summary, summaries

Found = dict[Point, Summary]

# Fixed, so that a contender has the same colour in every picture whoever else was measured. gaio stands out.
COLOURS = {
    "c_epoll": "#3a3a3a",
    "uvloop": "#1f77b4",
    "uvloop-buffered": "#79b4dd",
    "asyncio-buffered": "#a9a9dd",
    "asyncio": "#7f7fbf",
    "asyncio-streams": "#b3a2d0",
    "trio": "#8c9f5b",
    "gevent": "#5b9f8c",
    "go-gaio": "#17a2b8",
    "plain-stdlib": "#b08d57",
    "plain-stdlib-caller": "#d0b98d",
    "gaio-epoll": "#d62728",
    "gaio-epoll-oneshot": "#a3123a",
    "gaio-epoll-caller": "#e88080",
    "gaio-io_uring": "#e67300",
    "gaio-io_uring-oneshot": "#c79a00",
    "gaio-io_uring-caller": "#f5ab66",
    "gaio-epoll-nested": "#8c2d04",
    "gaio-io_uring-nested": "#b35806",
    "gaio-asyncio-epoll": "#c2185b",
    "gaio-asyncio-epoll-buffered": "#e48fb1",
    "gaio-asyncio-io_uring": "#7b1fa2",
    "gaio-asyncio-io_uring-buffered": "#c08fd6",
    "blocking-socket": "#3a3a3a",
}


def draw(results: Results, folder: Path) -> list[str]:
    """Writes each picture the results have figures for; returns their names without ending."""
    matplotlib.rcParams["svg.hashsalt"] = "gaio"  # the same results give the same file
    found = summaries(results.samples)
    written = []
    for name, picture in PICTURES.items():
        drawing = picture(found)
        if drawing is None:
            continue
        drawing.savefig(folder / f"{name}.svg", metadata={"Date": None})
        drawing.savefig(folder / f"{name}.png", dpi=120)
        written.append(name)
    return written


def _panels(count: int, height: float = 4.2) -> tuple[Drawing, list[Axes]]:
    """Two a row."""
    rows = (count + 1) // 2
    drawing = Drawing(figsize=(6.5 * min(count, 2), height * rows), layout="constrained")
    axes: list[Axes] = list(drawing.subplots(rows, min(count, 2), squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return drawing, axes[:count]


def _in_order(summary: Summary) -> list[str]:
    return [contender.name for contender in ALL if contender.name in summary]


def throughput(found: Found) -> Drawing | None:
    """Requests a second against connections, 64-byte echo, a panel for each placement."""
    curves: dict[str, dict[str, list[tuple[int, float, float, float]]]] = {}
    for point, summary in found.items():
        if point.group == "echo" and point.size == 64:
            for name in _in_order(summary):
                rate = summary[name]["requests_per_second"]
                curves.setdefault(point.placement, {}).setdefault(name, []).append(
                    (point.connections, rate.median, rate.least, rate.most)
                )
    if not curves:
        return None
    drawing, panels = _panels(len(curves), 5.5)
    for panel, (placement, lines) in zip(panels, curves.items(), strict=True):
        for name in sorted(lines, key=lambda name: -lines[name][-1][1]):
            connections, medians, least, most = zip(*sorted(lines[name]), strict=True)
            panel.plot(
                connections,
                medians,
                marker="o",
                markersize=4,
                color=COLOURS[name],
                label=title_of(name),
                linewidth=2.2 if BY_NAME[name].is_gaio else 1.3,
                linestyle="--" if BY_NAME[name].caller_buffers else "-",
            )
            panel.fill_between(connections, least, most, color=COLOURS[name], alpha=0.12, linewidth=0)
        panel.set(
            title=f"echo of 64 bytes, {placement}",
            xlabel="connections",
            ylabel="requests per second",
            xscale="log",
        )
        counts = sorted({count for line in lines.values() for count, *_ in line})
        panel.set_xticks(counts, [f"{count:,}" for count in counts])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.grid(alpha=0.3)
    # Beside the panels, from best to worst in the last of them: inside it would hide the lines.
    handles, labels = panels[-1].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right center", fontsize=8)
    return drawing


def _bars(panel: Axes, summary: Summary, figure: str, title: str, unit: str) -> None:
    names = _in_order(summary)
    # The first bar is the lowest: the best comes last, whether that is the most or the least.
    names.sort(key=lambda name: summary[name][figure].median, reverse="bytes" in figure.split("_"))
    values = [summary[name][figure] for name in names]
    medians = [value.median for value in values]
    errors = [
        [value.median - value.least for value in values],
        [value.most - value.median for value in values],
    ]
    bars = panel.barh(
        [title_of(name) for name in names],
        medians,
        xerr=errors,
        color=[COLOURS[name] for name in names],
        error_kw={"linewidth": 0.8, "alpha": 0.6},
    )
    panel.bar_label(bars, labels=[f" {median:,.0f}" for median in medians], fontsize=7)
    panel.margins(x=0.15)
    panel.set(title=title, xlabel=unit)
    panel.grid(axis="x", alpha=0.3)


def processor_time(found: Found) -> Drawing | None:
    """Server time a request at 64 connections, split in user and kernel."""
    points = [
        point for point in found if point.group == "echo" and (point.connections, point.size) == (64, 64)
    ]
    if not points:
        return None
    drawing, panels = _panels(len(points))
    for panel, point in zip(panels, points, strict=True):
        summary = found[point]
        names = _in_order(summary)
        user = [summary[name]["server_user_us"].median for name in names]
        kernel = [summary[name]["server_kernel_us"].median for name in names]
        titles = [title_of(name) for name in names]
        panel.barh(titles, kernel, color="#9a9a9a", label="kernel")
        panel.barh(titles, user, left=kernel, color="#d62728", label="user")
        panel.invert_yaxis()
        panel.set(title=f"server processor time a request\n{point.title}", xlabel="µs")
        panel.grid(axis="x", alpha=0.3)
        panel.legend(fontsize=8)
    return drawing


def latency(found: Found) -> Drawing | None:
    """Median and 99th percentile, 64-byte echo over 64 connections."""
    points = [
        point for point in found if point.group == "echo" and (point.connections, point.size) == (64, 64)
    ]
    if not points:
        return None
    drawing, panels = _panels(len(points))
    for panel, point in zip(panels, points, strict=True):
        summary = found[point]
        names = _in_order(summary)
        p50 = [summary[name]["p50_us"].median for name in names]
        p99 = [summary[name]["p99_us"].median for name in names]
        titles = [title_of(name) for name in names]
        panel.hlines(titles, p50, p99, color=[COLOURS[name] for name in names], linewidth=2)
        panel.scatter(p50, titles, marker="o", color=[COLOURS[name] for name in names], label="p50")
        panel.scatter(p99, titles, marker="|", s=120, color=[COLOURS[name] for name in names], label="p99")
        panel.invert_yaxis()
        panel.set(title=f"latency, p50 to p99\n{point.title}", xlabel="µs", xscale="log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="x", alpha=0.3)
    return drawing


def _bar_picture(found: Found, wanted: Callable[[Point], bool], figure: str, unit: str) -> Drawing | None:
    points = [point for point in found if wanted(point)]
    if not points:
        return None
    drawing, panels = _panels(len(points))
    for panel, point in zip(panels, points, strict=True):
        _bars(panel, found[point], figure, textwrap.fill(point.title, 50), unit)
    return drawing


def large_messages(found: Found) -> Drawing | None:
    return _bar_picture(
        found,
        lambda point: point.group == "echo" and point.size == 65536 and point.connections in (1, 16),
        "megabytes_per_second",
        "MB/s",
    )


def push(found: Found) -> Drawing | None:
    return _bar_picture(
        found, lambda point: point.group == "push", "requests_per_second", "messages per second"
    )


def crowded(found: Found) -> Drawing | None:
    """What happens to 64 busy connections when much else goes on."""
    return _bar_picture(
        found, lambda point: point.group in ("idle", "burn"), "requests_per_second", "requests per second"
    )


def independent_clients(found: Found) -> Drawing | None:
    return _bar_picture(
        found, lambda point: point.group in ("ping", "http", "wsgi"), "requests_per_second", "requests per second"
    )


def loops(found: Found) -> Drawing | None:
    """What stands on asyncio, on each loop for it."""
    return _bar_picture(
        found,
        lambda point: point.group in ("streams", "tls", "uvicorn", "uvicorn-burn"),
        "requests_per_second",
        "requests per second",
    )


def memory(found: Found) -> Drawing | None:
    """Accepted and waiting for the first byte; and waiting for another one."""
    kinds = {"bytes_per_connection": "not served yet", "served_bytes_per_connection": "served once"}
    wanted = [
        (point, figure)
        for point, summary in found.items()
        if point.group == "memory"
        for figure in kinds
        if all(figure in figures for figures in summary.values())
    ]
    if not wanted:
        return None
    drawing, panels = _panels(len(wanted))
    for panel, (point, figure) in zip(panels, wanted, strict=True):
        title = textwrap.fill(f"{point.title}, {kinds[figure]}", 50)
        _bars(panel, found[point], figure, title, "bytes")
    return drawing


PICTURES: dict[str, Callable[[Found], Drawing | None]] = {
    "throughput": throughput,
    "processor_time": processor_time,
    "latency": latency,
    "large_messages": large_messages,
    "loops": loops,
    "push": push,
    "crowded": crowded,
    "independent_clients": independent_clients,
    "memory": memory,
}
