"""Limits of one request and of all requests together."""

import dataclasses

from spirit_jax.core.errors import SpiritError


class LimitError(SpiritError):
    """A limit that is out of range, or a request beyond one; the message names the limit."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server. A request beyond one is refused with a message that names it."""

    pending: int = 64
    """Requests that may wait for a slot; further ones are refused with status 429."""
    seconds: float = 300.0
    """Longest time of a request. An answer that is not complete by then ends early."""
    upload_mib: float = 25.0
    """Largest body of a request, in MiB."""
    audio_seconds: float = 100.0
    """Longest recording in a prompt, in seconds."""
    channels: int = 2
    """Most channels of a recording; they are averaged."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            smallest = 0 if field.name == "pending" else 1
            if getattr(self, field.name) < smallest:
                raise LimitError(f"limits.{field.name} must be {smallest} or more, found {getattr(self, field.name)}")

    @property
    def upload_bytes(self) -> int:
        """Largest body of a request in bytes."""
        return int(self.upload_mib * 2**20)
