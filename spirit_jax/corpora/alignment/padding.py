"""Batches of items of similar size, padded to few shapes, because each shape is compiled once."""

from collections.abc import Iterator, Sequence

from spirit_jax.core.arithmetic import next_power_of_two, previous_power_of_two, round_up


def padded_size(size: int, smallest: int = 64, sizes_an_octave: int = 4) -> int:
    """The next of four sizes an octave: padding adds at most a quarter, and an eighth on average."""
    if size <= smallest:
        return smallest
    step = next_power_of_two(size) // (2 * sizes_an_octave)
    return round_up(size, step)


def padded_batches(sizes: Sequence[int], budget: int) -> Iterator[tuple[list[int], int, int]]:
    """Group items by padded size, the longest last.

    Args:
        sizes: size of each item.
        budget: most padded elements in a batch of more than one item.

    Yields:
        Indices of the items of a batch, their padded size, and the number of rows: a power of two, at least the number
        of items.
    """
    groups: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(padded_size(size), []).append(index)
    for size, waiting in sorted(groups.items()):
        largest = previous_power_of_two(budget // size)
        while waiting:
            batch, waiting = waiting[:largest], waiting[largest:]
            yield batch, size, next_power_of_two(len(batch))
