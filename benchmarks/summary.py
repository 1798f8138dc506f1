"""From samples to medians: what the table, the plots and the targets all read."""

import statistics
from dataclasses import dataclass

from .contenders import BY_NAME
from .loads import Load
from .measure import Sample


@dataclass(frozen=True)
class Point:
    """A load in a place."""

    group: str
    connections: int
    size: int
    idle: int
    placement: str

    @property
    def load(self) -> Load:
        return Load(self.group, self.connections, self.size, self.idle)

    @property
    def title(self) -> str:
        return (
            self.load.title if self.group in ("memory", "import") else f"{self.load.title}, {self.placement}"
        )


@dataclass(frozen=True)
class Figure:
    """One figure over the rounds."""

    median: float
    least: float
    most: float


Summary = dict[str, dict[str, Figure]]  # contender -> name of the figure -> its values


def summaries(samples: list[Sample]) -> dict[Point, Summary]:
    """In the order in which they were measured."""
    gathered: dict[Point, dict[str, dict[str, list[float]]]] = {}
    for sample in samples:
        if sample.failure:
            continue
        point = Point(sample.group, sample.connections, sample.size, sample.idle, sample.placement)
        figures = gathered.setdefault(point, {}).setdefault(sample.contender, {})
        for name, value in sample.figures.items():
            figures.setdefault(name, []).append(value)
    return {
        point: {
            contender: {
                name: Figure(statistics.median(values), min(values), max(values))
                for name, values in figures.items()
            }
            for contender, figures in found.items()
        }
        for point, found in gathered.items()
    }


def main_figure(group: str) -> str:
    """The figure a load is about."""
    return {"memory": "bytes_per_connection", "latency": "read_p50_us", "import": "import_ms"}.get(
        group, "requests_per_second"
    )


def best_gaio(summary: Summary) -> str:
    """The gaio contender with the most requests a second at this point, "" when none was measured."""
    rates = {
        name: figures["requests_per_second"].median
        for name, figures in summary.items()
        if name in BY_NAME and BY_NAME[name].is_gaio and "requests_per_second" in figures
    }
    return max(rates, key=lambda name: rates[name], default="")
