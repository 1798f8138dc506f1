"""The wheel, as it is built and as it is installed."""
