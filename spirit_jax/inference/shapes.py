"""Padded shapes. They come from a small set, so that most new prompts compile nothing."""

from jax.sharding import Mesh

from spirit_jax.core.arithmetic import next_power_of_two, round_up

_SMALLEST_BUCKET = 64


def bucket(length: int, largest: int | None = None, steps: int = 1) -> int:
    """Return the padded length: the next power of two, at least 64.

    Args:
        largest: upper bound of the result.
        steps: number of equally spaced lengths from one power of two to the next; more steps pad less and compile more.
    """
    step = max(_SMALLEST_BUCKET, next_power_of_two(length)) // (2 * steps)
    padded = max(_SMALLEST_BUCKET, round_up(length, step))
    return padded if largest is None else min(padded, largest)


def batch_ways(mesh: Mesh) -> int:
    """Return the number of parts that the mesh splits the rows of a batch into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def padded_rows(rows: int, mesh: Mesh) -> int:
    """Return the number of rows, rounded up so that the mesh splits them evenly."""
    return round_up(rows, batch_ways(mesh))
