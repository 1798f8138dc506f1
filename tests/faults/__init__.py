"""Faults, floods and scarcity: what must hold when something goes wrong. The table is in README.md."""
