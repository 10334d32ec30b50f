"""Counters, gauges and histograms in Prometheus' text format, and the ones that the server keeps.

The format is version 0.0.4 of Prometheus' exposition formats.
"""

import bisect
import threading
from collections.abc import Callable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of the text format."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Counter:
    """A number that only grows, one for each combination of labels."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()):
        self.name, self.help_text = name, help_text
        self._labels = tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float = 1, *labels: str) -> None:
        """Add to the counter of these labels, which are in the order of their names."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def lines(self) -> list[str]:
        """Return the samples as lines of the text format."""
        with self._lock:
            values = sorted(self._values.items())
        head = [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} counter"]
        return head + [f"{self.name}{_label_text(self._labels, labels)} {value:g}" for labels, value in values]


class Gauge:
    """A number that is read when the metrics are asked for."""

    def __init__(self, name: str, help_text: str, read: Callable[[], float]):
        self.name, self.help_text, self._read = name, help_text, read

    def lines(self) -> list[str]:
        """Return the sample as lines of the text format."""
        return [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} gauge", f"{self.name} {self._read():g}"]


class Histogram:
    """Histogram of times: the number below each of a row of bounds, in seconds."""

    def __init__(self, name: str, help_text: str):
        self.name, self.help_text = name, help_text
        self._lock = threading.Lock()
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        with self._lock:
            self._counts[bisect.bisect_left(_SECONDS, seconds)] += 1
            self._sum += seconds

    def lines(self) -> list[str]:
        """Return the samples as lines of the text format."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines = [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} histogram"]
        below = 0
        for bound, count in zip([*map(str, _SECONDS), "+Inf"], counts, strict=True):
            below += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{self.name}_sum {total:g}", f"{self.name}_count {below}"]


class ServerMetrics:
    """Metrics that `/metrics` shows."""

    def __init__(self) -> None:
        self.responses = Counter("spirit_http_responses_total", "HTTP responses.", ("path", "status"))
        self.requests = Counter("spirit_requests_total", "Generations, by how they ended.", ("ending",))
        self.refused = Counter("spirit_requests_refused_total", "Generations refused because the queue was full.")
        self.prompt_tokens = Counter("spirit_prompt_tokens_total", "Tokens of prompts that were read.")
        self.tokens = Counter("spirit_generated_tokens_total", "Tokens that were generated.")
        self.audio_seconds = Counter("spirit_generated_audio_seconds_total", "Seconds of speech that were spoken.")
        self.first_token = Histogram("spirit_time_to_first_token_seconds", "From a request to its first tokens.")
        self.first_audio = Histogram("spirit_time_to_first_audio_seconds", "From a request to its first audio.")
        self.duration = Histogram("spirit_request_seconds", "From a request to the end of its answer.")
        self.gauges: list[Gauge] = []

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a number that is read when the metrics are asked for."""
        self.gauges.append(Gauge(name, help_text, read))

    def text(self) -> str:
        """Return all metrics in the text format."""
        shown = [value for value in vars(self).values() if isinstance(value, Counter | Histogram)]
        return "\n".join(line for metric in [*shown, *self.gauges] for line in metric.lines()) + "\n"


def _label_text(names: Sequence[str], values: Sequence[str]) -> str:
    """Return labels in braces, with their values escaped."""
    escaped = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values)
    text = ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True))
    return f"{{{text}}}" if text else ""
