"""The kqueue backend over kernels that are rare or misbehave: simulated ones, and a library in C."""
