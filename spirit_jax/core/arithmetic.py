"""Integer arithmetic for shapes."""


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient rounded up, exact for integers of any size."""
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return ceil_div(value, multiple) * multiple


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`, and at least 1."""
    return 1 << max(value - 1, 0).bit_length()


def previous_power_of_two(value: int) -> int:
    """The largest power of two that is at most `value`; 1 for values below 1."""
    return 1 << max(value, 1).bit_length() - 1
