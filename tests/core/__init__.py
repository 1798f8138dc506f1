"""The parts of the core that need no socket, against simple models."""
