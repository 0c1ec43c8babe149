"""Benchmarks of Raycade, each a command: `python -m benchmarks.overhead`. See README.md in this folder."""
