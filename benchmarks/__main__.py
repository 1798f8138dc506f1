"""`python3 -m benchmarks`: gaio beside its peers, in one go. Writes JSON, a Markdown page and plots."""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import contenders, environment, loads, places, processes, report, system_calls
from .contenders import Contender
from .loads import Load
from .measure import Sample, Timing, count_system_calls, import_time, measure
from .processes import Bystanders, Failed, Placement
from .report import Results
from .summary import Point, summaries


def comma_separated(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if unknown := [part for part in parts if part not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
        return parts

    return parse


def numbers(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="under two minutes: one short round, fewer contenders"
    )
    parser.add_argument(
        "--only",
        type=comma_separated(loads.GROUPS),
        default=list(loads.GROUPS),
        metavar="GROUPS",
        help="of " + ",".join(loads.GROUPS),
    )
    parser.add_argument(
        "--contenders",
        type=comma_separated(tuple(contenders.BY_NAME)),
        metavar="NAMES",
        help="of " + ",".join(contenders.BY_NAME),
    )
    parser.add_argument("--placement", choices=("pinned", "free", "both"), default="both")
    parser.add_argument(
        "--connections", type=numbers, default=[], help="of the echo, instead of the usual points"
    )
    parser.add_argument("--size", type=numbers, default=[], help="bytes a message of the echo, likewise")
    parser.add_argument("--rounds", type=int, help="5 unless told otherwise")
    parser.add_argument("--seconds", type=float, help="measured in each round; 1 unless told otherwise")
    parser.add_argument("--results", type=Path, default=places.RESULTS, help="folder for what is written")
    parser.add_argument(
        "--patience",
        type=int,
        default=0,
        metavar="N",
        help="measure a sample up to N times more when other processes disturb it",
    )
    parser.add_argument(
        "--from",
        dest="earlier",
        type=Path,
        metavar="JSON",
        help="measure nothing; make page and plots from an earlier run's JSON",
    )
    return parser.parse_args()


DISTURBED = 0.05  # share of the machine in other processes' hands that makes a sample worth repeating


class Run:
    """Every chosen load over the contenders that can run here."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rounds: int = options.rounds or (1 if options.quick else 5)
        seconds: float = options.seconds or (0.3 if options.quick else 1.0)
        self.patience: int = options.patience
        self.timing = Timing(seconds, min(0.3, seconds / 2))
        self.places = [place for place in processes.placements() if options.placement in ("both", place.name)]
        self.results = Results(
            environment.describe(),
            {"rounds": str(self.rounds), "seconds": f"{seconds:g}", "warm-up": f"{self.timing.warm_up:g}"},
        )
        self.contenders = self._able(options)
        self.loads = self._possible(options)
        self.counted = [
            (load, place)
            for load in self.loads
            for place in self.places_of(load)
            if load.counts and (not options.quick or (load.counts_quickly and place is self.places[0]))
        ]
        self.counter = system_calls.find() if self.counted else None
        if self.counter is not None:
            self.results.options["system calls counted by"] = self.counter.name
        elif self.counted:
            self._leave_out("system calls a request", "perf and strace are not installed, or not allowed")
        self.began = time.monotonic()

    def _able(self, options: argparse.Namespace) -> list[Contender]:
        chosen = [contenders.BY_NAME[name] for name in options.contenders or contenders.BY_NAME]
        if options.quick and not options.contenders:
            chosen = [contender for contender in chosen if contender.quick]
            self._leave_out("--quick", "the contenders and loads that a full run has beyond these")
        able = []
        for contender in chosen:
            if reason := contender.missing():
                self._leave_out(contender.name, reason)
            else:
                able.append(contender)
        return able

    def _possible(self, options: argparse.Namespace) -> list[Load]:
        chosen = loads.chosen(options.only, options.connections, options.size, options.quick)
        descriptors = environment.raise_descriptor_limit()
        lacking = {group: environment.lacking(group) for group in {load.group for load in chosen}}
        possible = []
        for load in chosen:
            if reason := lacking[load.group]:
                self._leave_out(load.title, reason)
            elif load.connections + load.idle + 200 > descriptors:
                self._leave_out(load.title, f"the limit is {descriptors} descriptors (ulimit -n)")
            else:
                possible.append(load)
        return possible

    def _leave_out(self, what: str, reason: str) -> None:
        self.results.left_out[what] = reason
        print(f"left out: {what}: {reason}", flush=True)

    def everything(self) -> None:
        pairs = [(load, place) for load in self.loads for place in self.places_of(load)]
        for number, (load, place) in enumerate(pairs, start=1):
            point = Point(load.group, load.connections, load.size, load.idle, place.name)
            print(f"[{number}/{len(pairs)}, {time.monotonic() - self.began:.0f} s] {point.title}", flush=True)
            if load.group == "import":
                samples = self.imports()
            else:
                samples = self.rounds_of(load, place)
            self.results.samples += samples
            for found in summaries(samples).values():
                for name, figures in found.items():
                    print(report.line(point, name, figures), flush=True)
            if (busy := report.others_busy(samples)) > report.QUIET:
                print(f"  other processes kept {busy:.0%} of the machine busy meanwhile", flush=True)

    def places_of(self, load: Load) -> list[Placement]:
        """Where two placements would say the same, a load is measured in one: in the first there is."""
        fitting = [place for place in self.places if place.name in load.placements]
        return fitting or self.places[:1]

    def rounds_of(self, load: Load, place: Placement) -> list[Sample]:
        """Contenders take turns, and each round begins with another one, so that a slow spell of the machine,
        and whatever a neighbour leaves behind, meets all of them."""
        fitting = [contender for contender in self.contenders if load.suits(contender)]
        samples = []
        for number in range(self.rounds):
            shift = number % max(len(fitting), 1)
            for contender in fitting[shift:] + fitting[:shift]:
                self.show(f"round {number + 1} of {self.rounds}: {contender.name}")
                samples.append(self.calm_sample(contender, load, place, number))
        if (load, place) in self.counted and self.counter is not None:
            self.count(load, place, samples)
        self.show("")
        order = [contender.name for contender in fitting]
        return sorted(samples, key=lambda sample: order.index(sample.contender))

    def count(self, load: Load, place: Placement, samples: list[Sample]) -> None:
        """Once for each contender, when the rounds are over: put into its first sample that has figures."""
        assert self.counter is not None
        for name, contender in contenders.BY_NAME.items():
            sample = next((one for one in samples if one.contender == name and not one.failure), None)
            if sample is None:
                continue
            self.show(f"system calls: {name}")
            try:
                sample.figures["system_calls"] = count_system_calls(
                    contender, load, place, self.timing, self.counter
                )
            except (Failed, system_calls.Refused) as problem:
                print(f"  {name}: its system calls were not counted: {problem}", flush=True)

    def calm_sample(self, contender: Contender, load: Load, place: Placement, number: int) -> Sample:
        """Measured again while other processes are busy, as often as patience allows; the calmest is kept.
        What decides is how busy they were, never the figure."""
        samples = []
        for _ in range(1 + self.patience):
            samples.append(self.sample(contender, load, place, number))
            if samples[-1].failure or samples[-1].others_busy <= DISTURBED:
                break
        return samples[-1] if samples[-1].failure else min(samples, key=lambda sample: sample.others_busy)

    def sample(self, contender: Contender, load: Load, place: Placement, number: int) -> Sample:
        sample = Sample(
            load.group, load.connections, load.size, load.idle, place.name, contender.name, number
        )
        bystanders = Bystanders()
        try:
            sample.figures = measure(contender, load, place, self.timing)
        except Failed as problem:
            sample.failure = str(problem)
            print(f"  {contender.name} failed: {problem}", flush=True)
        sample.others_busy = bystanders.share()
        return sample

    def imports(self) -> list[Sample]:
        return [
            Sample("import", 0, 0, 0, "free", f"import {module}", number, figures)
            for number in range(self.rounds)
            for module, figures in import_time(["gaio", "asyncio"]).items()
        ]

    def show(self, text: str) -> None:
        """What is going on, in place, for somebody who watches; a log keeps only the results."""
        if sys.stdout.isatty():
            print(f"\r\033[K  {text}", end="\r" if text else "\r\033[K", flush=True)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder / "results.json")
    pictures: list[str] = []
    try:
        from . import plots

        pictures = plots.draw(results, folder)
    except ImportError:
        results.left_out["plots"] = "pip install matplotlib"
        print("left out: plots: pip install matplotlib")
    (folder / "results.md").write_text(report.page(results, pictures))
    if lines := report.target_lines(results):
        print(f"targets:\n{lines}")
    for name in ("results.json", "results.md", *(f"{picture}.png" for picture in pictures)):
        print(f"written: {folder / name}")


def main() -> int:
    options = arguments()
    if sys.platform != "linux":
        sys.exit("The benchmark reads /proc and assigns processors: it runs on Linux only.")
    environment.enter()
    if options.earlier:
        write(report.load_results(options.earlier), options.results)
        return 0
    # `kill` and `timeout` end a run like Ctrl-C does: no server is left behind, and the results are written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = Run(options)
    complete = True
    try:
        run.everything()
    except KeyboardInterrupt:
        print("\ninterrupted; what has been measured is kept")
        complete = False
    write(run.results, options.results)
    return 0 if complete and not any(sample.failure for sample in run.results.samples) else 1


if __name__ == "__main__":
    sys.exit(main())
