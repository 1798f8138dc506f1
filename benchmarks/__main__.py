"""`python3 -m benchmarks`: gaio beside its peers, in one go."""
import argparse
import resource
import statistics
import sys

from . import contenders, measure


def comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__)
    parser.add_argument("--only", type=comma_separated)
    parser.add_argument("--contenders", type=comma_separated)
    parser.add_argument("--placement", choices=("pinned", "free", "both"), default="both")
    parser.add_argument("--connections", type=int, action="append")
    parser.add_argument("--size", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    runners = [contenders.BY_NAME[name] for name in options.contenders or contenders.BY_NAME]
    timing = measure.Timing(options.seconds, min(0.3, options.seconds / 2))
    for placement in measure.placements():
        if options.placement not in ("both", placement.name):
            continue
        for size in options.size or [64]:
            for connections in options.connections or [1, 8, 64, 1000]:
                print(f"echo {size} B, {connections} connections, {placement.name}")
                samples: dict[str, list[measure.Sample]] = {runner.name: [] for runner in runners}
                for _ in range(options.rounds):
                    for runner in runners:
                        try:
                            samples[runner.name].append(
                                measure.echo(runner, placement, timing, connections=connections, size=size))
                        except measure.Failed as problem:
                            print(f"  {runner.name}: {problem}")
                for name, lines in samples.items():
                    if lines:
                        rates = [line["requests_per_second"] for line in lines]
                        middle = sorted(lines, key=lambda line: line["requests_per_second"])[len(lines) // 2]
                        cpu = middle["server_cpu_us"]
                        print(f"  {name:22s} {statistics.median(rates):10,.0f}/s  [{min(rates):,.0f} .. {max(rates):,.0f}]"
                              f"  p50 {middle['latency_us']['p50']:8.1f} p99 {middle['latency_us']['p99']:8.1f} us"
                              f"  server cpu {cpu['user']:5.2f} user {cpu['kernel']:5.2f} kernel us/request")
    return 0


if __name__ == "__main__":
    sys.exit(main())
