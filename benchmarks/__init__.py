"""gaio beside its peers, measured: `python3 -m benchmarks`. The method and its noise: NOTES.md."""
