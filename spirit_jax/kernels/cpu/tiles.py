"""A function of audio in tiles, so that what it makes stays in a CPU's cache."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from spirit_jax.core.arithmetic import ceil_div


def in_tiles(
    function: Callable[..., Float[Array, "N T C"]],
    audio_br: Float[Array, "B R"],
    rows: tuple[Float[Array, "B ..."], ...],
    *,
    hop: int,
    receptive_field: int,
    tile: int,
) -> Float[Array, "B T C"]:
    """`function(audio, *rows)`, about `tile` samples at a time, so that long audio needs no more memory than short.

    Args:
        function: makes the frames of clips that it is given with a row of each of `rows`. Frame t reads the samples
            from t * hop to t * hop + receptive_field - 1 only.
        rows: constants of each clip, by position.
    """
    batch, time = audio_br.shape[0], (audio_br.shape[1] - receptive_field) // hop + 1
    limit = max(1, tile // hop)  # frames
    count = ceil_div(time, limit)
    size = ceil_div(time, count)
    samples, step = (size - 1) * hop + receptive_field, size * hop
    audio_br = jnp.pad(audio_br, ((0, 0), (0, max(0, (count - 1) * step + samples - audio_br.shape[1]))))
    tiles = jnp.stack([audio_br[:, i * step : i * step + samples] for i in range(count)], 1)
    # short tiles share a turn of the loop
    together = max(n for n in range(1, batch * count + 1) if batch * count % n == 0 and (n == 1 or n * size <= limit))

    def split(x):
        """[batch, count, ...] to [turns, together, ...]."""
        return x.reshape(-1, together, *x.shape[2:])

    arguments = (split(tiles), *(split(jnp.repeat(row[:, None], count, 1)) for row in rows))
    frames = lax.map(lambda clips: function(*clips), arguments)
    return frames.reshape(batch, count * size, -1)[:, :time]
