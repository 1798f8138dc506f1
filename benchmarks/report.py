"""The results as one JSON file and one Markdown page made from it."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import targets
from .contenders import BY_NAME
from .measure import Sample
from .summary import Figure, Point, Summary, best_gaio, main_figure, summaries


@dataclass
class Results:
    environment: dict[str, str]
    options: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)  # contender or tool -> why
    samples: list[Sample] = field(default_factory=list)

    def save(self, path: Path) -> None:
        document = asdict(self)
        document["medians"] = [
            {
                **asdict(point),
                "contender": contender,
                **{name: figure.median for name, figure in figures.items()},
            }
            for point, found in summaries(self.samples).items()
            for contender, figures in found.items()
        ]
        document["targets"] = [
            {**asdict(verdict), "best": verdict.best, "passed": verdict.passed}
            for verdict in targets.judge(summaries(self.samples))
        ]
        path.write_text(json.dumps(document, indent=1) + "\n")


def load_results(path: Path) -> Results:
    document = json.loads(path.read_text())
    return Results(
        document["environment"],
        document["options"],
        document["left_out"],
        [Sample(**sample) for sample in document["samples"]],
    )


PREFACE = (
    "Made by `python3 -m benchmarks`; how the figures come about: `benchmarks/NOTES.md`. Medians over the "
    "rounds, in brackets the smallest and the largest. Ratios carry to other machines, absolute figures do "
    "not."
)


def page(results: Results, plots: Iterable[str]) -> str:
    found = summaries(results.samples)
    parts = [
        "# gaio beside its peers",
        PREFACE,
        _table(("", ""), results.environment.items()),
        "Run with " + ", ".join(f"{name} {value}" for name, value in results.options.items()) + ".",
        _noise(results),
        _left_out(results),
        "## Targets",
        _targets(found),
    ]
    parts += [f"![{name}]({name}.svg)" for name in plots]
    parts.append("## Figures")
    for point, summary in found.items():
        parts += [f"### {point.title}", _point_table(point, summary)]
    return "\n\n".join(part for part in parts if part) + "\n"


QUIET = 0.02  # of the machine in other processes' hands: a few background services, no disturbance


def others_busy(samples: list[Sample]) -> float:
    return statistics.mean(sample.others_busy for sample in samples) if samples else 0.0


def _noise(results: Results) -> str:
    busy = others_busy(results.samples)
    return f"Other processes used {busy:.1%} of the machine's processor time during the run" + (
        "." if busy <= QUIET else ": the figures are disturbed, the spreads tell how much."
    )


def _left_out(results: Results) -> str:
    lines = [f"- {name}: {reason}" for name, reason in results.left_out.items()]
    failures: dict[tuple[str, str], list[str]] = {}
    for sample in results.samples:
        if sample.failure:
            point = Point(sample.group, sample.connections, sample.size, sample.idle, sample.placement)
            failures.setdefault((sample.contender, point.title), []).append(sample.failure)
    lines += [
        f"- {contender} failed {len(said)} of its rounds of “{title}”: {said[0]}"
        for (contender, title), said in failures.items()
    ]
    return "Left out or failed:\n\n" + "\n".join(lines) if lines else ""


def _targets(found: dict[Point, Summary]) -> str:
    verdicts = targets.judge(found)
    if not verdicts:
        return "This run measured none of the points that targets speak of."
    rows = []
    for verdict in verdicts:
        reached = ", ".join(
            f"{backend} {value:,.{0 if verdict.unit == 'bytes' else 2}f}"
            for backend, value in verdict.reached.items()
        )
        wanted = f"{'≤' if verdict.at_most else '≥'} {verdict.wanted:g} {verdict.unit}"
        rows.append(
            (verdict.work, verdict.against, wanted, reached, "pass" if verdict.passed else "**fail**")
        )
    passed = sum(verdict.passed for verdict in verdicts)
    return f"{passed} of {len(verdicts)} reached.\n\n" + _table(
        ("work", "against", "wanted", "reached", "verdict"), rows
    )


def target_lines(results: Results) -> str:
    """The same for the terminal."""
    return "\n".join(
        f"  {'reached' if verdict.passed else 'MISSED '} {verdict.best:8,.2f} {verdict.unit:5} "
        f"wanted {'at most' if verdict.at_most else 'at least'} {verdict.wanted:g}: "
        f"{verdict.work}, against {verdict.against}"
        for verdict in targets.judge(summaries(results.samples))
    )


def title_of(contender: str) -> str:
    return BY_NAME[contender].title if contender in BY_NAME else contender


def _point_table(point: Point, summary: Summary) -> str:
    if point.group == "memory":
        return _table(
            ("contender", "bytes a connection", "bytes once it has been served", "MB when warm"),
            (
                (
                    title_of(name),
                    _with_range(figures["bytes_per_connection"]),
                    # Runs from before this was measured can still be made into a page.
                    _with_range(served) if (served := figures.get("served_bytes_per_connection")) else "-",
                    f"{figures['resident_megabytes'].median:.1f}",
                )
                for name, figures in _ordered(point, summary)
            ),
        )
    if point.group == "import":
        return _table(
            ("module", "ms"),
            (
                (title_of(name), f"{figures['import_ms'].median:.1f}")
                for name, figures in _ordered(point, summary)
            ),
        )
    if point.group == "latency":
        return _table(
            ("contender", "write p50 µs", "write p99 µs", "read p50 µs", "read p99 µs"),
            (
                (
                    title_of(name),
                    *(
                        f"{figures[key].median:.1f}"
                        for key in ("write_p50_us", "write_p99_us", "read_p50_us", "read_p99_us")
                    ),
                )
                for name, figures in _ordered(point, summary)
            ),
        )
    best = best_gaio(summary)
    large = point.size >= 65536
    own_load = any("server_busy" in figures for figures in summary.values())
    unit = "messages" if point.group == "push" else "requests"
    rows = []
    for name, figures in _ordered(point, summary):
        rate = figures["requests_per_second"]
        ratio = f"{rate.median / summary[best]['requests_per_second'].median:.2f}" if best else ""
        row = [
            f"**{title_of(name)}**" if name in BY_NAME and BY_NAME[name].is_gaio else title_of(name),
            _with_range(rate),
            ratio,
            f"{figures['p50_us'].median:,.0f}",
            f"{figures['p99_us'].median:,.0f}",
            f"{figures['server_user_us'].median:.2f}",
            f"{figures['server_kernel_us'].median:.2f}",
            f"{calls.median:.2f}" if (calls := figures.get("system_calls")) else "-",
        ]
        if own_load:
            row.append(f"{figures['server_busy'].median:.0%} / {figures['load_busy'].median:.0%}")
        if large:
            row.append(f"{figures['megabytes_per_second'].median:,.0f}")
        if point.group in ("flood", "neighbours"):
            row.append(f"{figures['calm_p50_us'].median:,.0f} / {figures['calm_p99_us'].median:,.0f}")
        rows.append(row)
    head = [
        "contender",
        f"{unit}/s",
        "of best gaio",
        "p50 µs",
        "p99 µs",
        f"user µs/{unit[:-1]}",
        f"kernel µs/{unit[:-1]}",
        f"system calls/{unit[:-1]}",
    ]
    head += ["server / load busy"] * own_load + ["MB/s"] * large
    head += ["without them p50 / p99 µs"] * (point.group in ("flood", "neighbours"))
    return _table(head, rows)


def _ordered(point: Point, summary: Summary) -> list[tuple[str, dict[str, Figure]]]:
    """Best first: most requests, else least of what is counted."""
    figure = main_figure(point.group)
    return sorted(
        summary.items(), key=lambda item: item[1][figure].median, reverse=figure == "requests_per_second"
    )


def _with_range(figure: Figure) -> str:
    return f"{figure.median:,.0f} [{figure.least:,.0f} .. {figure.most:,.0f}]"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = list(head)
    lines = [cells, ["---"] * len(cells), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def line(point: Point, name: str, figures: dict[str, Figure]) -> str:
    """One line for the terminal."""

    def median(figure: str) -> float:
        return figures[figure].median

    head = f"  {name:24s} "
    if point.group == "memory":
        return head + (
            f"{median('bytes_per_connection'):10,.0f} bytes a connection,"
            f" {median('served_bytes_per_connection'):10,.0f} once it has been served"
        )
    if point.group == "import":
        return head + f"{median('import_ms'):10.1f} ms"
    if point.group == "latency":
        return head + ", ".join(
            f"{name} p50 {median(f'{name}_p50_us'):6.1f} p99 {median(f'{name}_p99_us'):6.1f} us"
            for name in ("write", "read")
        )
    rate = figures["requests_per_second"]
    return head + (
        f"{rate.median:9,.0f}/s [{rate.least:9,.0f} .. {rate.most:9,.0f}]"
        f"  p50 {median('p50_us'):8,.0f} p99 {median('p99_us'):8,.0f} us"
        f"  cpu/request {median('server_user_us'):6.2f} user {median('server_kernel_us'):6.2f} kernel us"
        + (f"  calls/request {median('system_calls'):5.2f}" if "system_calls" in figures else "")
    )
