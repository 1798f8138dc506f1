"""Programs on gaio, to be run from a checkout: `python3 -m examples.echo_server`."""
