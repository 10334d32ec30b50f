"""Checks of options that several commands share."""


def check_seed(seed: int) -> None:
    """Check that NumPy's generators can begin with a seed.

    Raises:
        ValueError: it is negative.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, found {seed}")
