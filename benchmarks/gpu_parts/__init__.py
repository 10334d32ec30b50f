"""The parts of `python -m benchmarks.gpu`. Each runs in a process of its own."""
