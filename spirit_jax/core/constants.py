"""Constants that several folders share."""

SAMPLE_RATE = 16_000
"""Samples a second of all audio inside the package."""

MINIMUM_SAMPLES = 1280
"""Length of the shortest clip that yields a unit of each stream: one pitch unit, 80 ms."""

GIB = 2**30
"""Bytes in a gibibyte."""
