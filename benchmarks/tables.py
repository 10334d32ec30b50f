"""Writes the tables of the documentation from the JSON in benchmarks/results/, so that no figure is typed by hand.

    python -m benchmarks.tables [--check]

A page holds a table between the lines `<!-- table NAME -->` and `<!-- end of table -->`. Below each table stands what
printed its figures: the command, the day and the machine. `--check` changes nothing, and ends with exit code 1 if a
page is not what the JSON says.
"""

import argparse
import datetime
import json
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.report import RESULTS

DOCS = pathlib.Path(__file__).parents[1] / "docs"
_LIBRARIES = ("jax", "torch", "libtpu")
_COMPILED = ("adapters", "pods", "speech_pods", "streams")
"""Results of compiled programs, which do not depend on the machine that compiled them."""
_BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Rows = Iterator[tuple[str, ...]]


class MissingResult(Exception):
    """There is no result of this name."""


def stored(name: str) -> dict[str, Any] | None:
    """Return the content of a result, None if there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def source(name: str) -> str:
    """Return the line about the origin of a result's figures."""
    found = stored(name)
    assert found is not None
    where, day = found["machine"], datetime.date.fromisoformat(found["date"])
    begin, end = f"`{found['command']}`, {day.day} {day:%B %Y}", f"(`benchmarks/results/{name}.json`)"
    if note := where.get("note"):
        return f"{begin}, {note} {end}"
    libraries = ", ".join(f"{library} {where[library]}" for library in _LIBRARIES if where.get(library))
    if name in _COMPILED:
        return f"{begin}, {libraries} {end}"
    cores = f"{where['cores']} of {where['cores_of_machine']} cores"
    wide = "AMX" if "amx_bf16" in where["instructions"] else "AVX-512" if "avx512f" in where["instructions"] else "AVX2"
    load = f"load {where['load']:g} by other programs at its begin"
    return f"{begin}, {cores} of {where['cpu']} with {wide}, {load}, {libraries} {end}"


def markdown(headings: Sequence[str], rows: Rows, *names: str) -> str:
    """Return a table and the origin of its figures."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    origin = f"From {'; '.join(map(source, names))}."
    return "\n".join([*lines, "", textwrap.fill(origin, 120, break_long_words=False, break_on_hyphens=False)])


def torch_table() -> str:
    """Every ratio to PyTorch on a CPU."""
    names = [name for name in _TORCH_ROWS if stored(name)]
    if not names:
        raise MissingResult("train_step")
    headings = ("what", "spirit_jax", "PyTorch", "ratio")
    return markdown(headings, (row for name in names for row in _TORCH_ROWS[name]()), *names)


def _figures(name: str) -> Any:
    found = stored(name)
    if found is None:
        raise MissingResult(name)
    return found["figures"]


def _ratio(value: float) -> str:
    return f"{value:.2f} x"


def _train_step_rows() -> Rows:
    found = _figures("train_step")
    speed, ratios = found["tokens_per_second"], found["ratios"]
    yield (
        f"training step, {found['parameters'] / 1e6:.0f} M Llama, float32",
        f"{speed['ours']:,.0f} tokens/s",
        f"{speed['torch']:,.0f} tokens/s",
        f"{_ratio(found['ratio'])} ({min(ratios):.2f} to {max(ratios):.2f} by round)",
    )


def _encode_rows() -> Rows:
    for row in _figures("encode"):
        clips = "one clip" if row["clips"] == 1 else f"{row['clips']} clips"
        speeds = (f"{row[side]:.1f} s of audio a second" for side in ("ours", "torch"))
        yield f"{row['network']}, {clips}", *speeds, _ratio(row["ratio"])


def _vocoder_rows() -> Rows:
    found = _figures("vocoder")
    for row in found["batches"]:
        speeds = (f"{1 / row['real_time_factor'][side]:.1f} s of audio a second" for side in ("ours", "torch"))
        yield f"base vocoder, batch {row['batch']}", *speeds, _ratio(row["speedup"])
    stream = found["stream"]
    first, chunk = stream["seconds_to_first_audio"], stream["median_seconds_a_chunk"]
    what = f"base vocoder, streamed in chunks of {stream['stream_chunk_seconds']:g} s"
    yield what, f"{first:.2f} s to the first audio, {chunk:.2f} s a chunk", "", ""


def _generate_rows(name: str) -> Rows:
    found = _figures(name)
    for row in found["batches"]:
        for stage in ("prefill", "decode"):
            speeds = (f"{row[stage][side]:,.0f} tokens/s" for side in ("ours", "torch"))
            what = f"{stage}, {found['parameters'] / 1e6:.0f} M Llama, {found['dtype']}, batch {row['batch']}"
            share = f", {row['share_of_memory']:.0%} of memory speed" if stage == "decode" else ""
            yield what, *speeds, _ratio(row[stage]["ours"] / row[stage]["torch"]) + share


_TORCH_ROWS: dict[str, Callable[[], Rows]] = {
    "train_step": _train_step_rows,
    "encode": _encode_rows,
    "vocoder": _vocoder_rows,
    "generate": lambda: _generate_rows("generate"),
    "generate_bfloat16": lambda: _generate_rows("generate_bfloat16"),
}


def train_speech_table() -> str:
    """Training steps of the parts of a speech tokenizer."""
    rows = (
        (
            row["part"],
            f"{1e3 * row['seconds']['ours']:.0f} ms",
            f"{1e3 * row['seconds']['torch']:.0f} ms",
            _ratio(row["ratio"]),
        )
        for row in _figures("train_speech")
    )
    return markdown(("part", "spirit_jax, a step", "PyTorch, a step", "ratio"), rows, "train_speech")


def products_table() -> str:
    """Speed of one matrix product."""
    rows = (
        (
            f"{row['dtype']}, {row['columns']} tokens",
            f"{row['xla_gflops']:.0f} GFLOP/s",
            f"{row['torch_gflops']:.0f} GFLOP/s",
            _ratio(row["ratio"]),
        )
        for row in _figures("products")
    )
    return markdown(("one product, [3072, 768]", "XLA", "PyTorch", "ratio"), rows, "products")


def data_table() -> str:
    """Speed of the data pipeline."""
    rows = (
        (
            f"{row['workers']}",
            f"{row['wall'] / 1e3:.0f} k",
            "" if row["workers"] else f"{row['cpu'] / 1e3:.0f} k",
            f"{row['filled']:.2%}",
            f"{row['first']:.2f} s",
            f"{row['longest']:.2f} s",
        )
        for row in _figures("data")
    )
    headings = (
        *("worker processes", "tokens/s", "tokens per CPU second", "rows filled", "first batch after"),
        "longest wait for a later one",
    )
    return markdown(headings, rows, "data")


def crops_table() -> str:
    """Speed at which a host decodes and crops recordings."""
    rows = ((f"{row['workers']}", row["source"], f"{row['speed']:.0f} s") for row in _figures("crops"))
    return markdown(("threads", "clips from", "audio a second"), rows, "crops")


def evaluate_table() -> str:
    """Scoring in batches against one at a time."""
    rows = (
        (
            row["task"],
            f"{row['one_at_a_time']:.0f}",
            f"{row['batched']:.0f}",
            f"{_ratio(row['ratio'])}, by CPU time {_ratio(row['ratio_cpu_seconds'])}",
        )
        for row in _figures("evaluate")
    )
    return markdown(("lengths of", "hypotheses a second, one at a time", "in batches", "ratio"), rows, "evaluate")


def nats_table() -> str:
    """Loss of held-out documents with weights in 8 and 4 bits."""
    rows = (
        (
            row["kind"],
            str(row["tokens"]),
            f"{row['floats']:.4f}",
            *(f"{row[kind]:.4f} ({row[kind] - row['floats']:+.4f})" for kind in ("int8", "int4")),
        )
        for row in _figures("quantize")["nats"]
    )
    return markdown(("kind", "tokens", "float32", "int8", "int4"), rows, "quantize")


def _form(name: str, floats: str) -> str:
    """Return the name of a form of weights, whose JSON says "floats" for those that are not quantized."""
    return floats if name == "floats" else name


def weights_table() -> str:
    """Memory of 7 B in each form of the weights."""
    rows = (
        (_form(row["weights"], "bfloat16"), f"{row['bytes'] / 1e9:.2f}", str(row["rows"]))
        for row in _figures("quantize")["memory"]
    )
    headings = ("weights", "GB", "rows of 4096 tokens beside them in 16 GiB, with 1 GiB to work in")
    return markdown(headings, rows, "quantize")


def quantized_decoding_table() -> str:
    """Speed of decoding in each form of the weights."""
    found = _figures("quantize")["decoding"]
    rows = ((_form(name, "float32"), f"{speed:.1f}") for name, speed in found["tokens_per_second"].items())
    return markdown(("weights", f"tokens a second, {found['parameters'] / 1e6:.0f} M, batch 1"), rows, "quantize")


def startup_table() -> str:
    """Seconds of a start and of its parts."""
    found = _figures("startup")

    def rows() -> Rows:
        helps = found["--help"].values()
        yield (
            "`--help` of a command",
            *(f"{min(h[kind] for h in helps):.2f} to {max(h[kind] for h in helps):.2f} s" for kind in ("clock", "cpu")),
        )
        for title, parts in found.items():
            if title != "--help":
                for name, part in parts.items():
                    yield f"{title}: {name}", f"{part['clock']:.2f} s", f"{part['cpu']:.2f} s"

    return markdown(("what", "clock", "CPU"), rows(), "startup")


def serve_table() -> str:
    """The server against the bare engine."""
    found = _figures("serve")
    rows = (
        (
            str(row["streams"]),
            f"{row['engine_tokens_per_second']:.1f}",
            f"{row['served_tokens_per_second']:.1f}",
            f"{row['lost']:.1%}",
            f"{row['seconds_to_first_text']:.2f} s",
            f"{row['seconds_to_first_audio']:.2f} s",
            f"{row['real_time_factor']:.1f}",
        )
        for row in found["streams"]
    )
    headings = ("streams", "engine, tokens/s", "served", "lost", "first text", "first audio", "s of speech a second")
    return markdown(headings, rows, "serve")


def streams_table() -> str:
    """Decoding of 7 B on TPU hosts, by the cost model."""

    def rows() -> Rows:
        for row in _figures("streams"):
            name = (row["host"], row["weights"], str(row["slots"]))
            if not row["fits"]:
                yield *name, "does not fit", "", ""
                continue
            memory = f"{row['memory_gib']:.1f} of {row['memory_limit_gib']:.1f}"
            yield *name, f"{1e3 * row['step_seconds']:.1f} ms", f"{row['tokens_per_second']:.0f}", memory

    headings = ("host", "weights", "streams", "step", "tokens/s a stream", "GiB a chip")
    return markdown(headings, rows(), "streams")


def hosts_table() -> str:
    """Prefill and decoding of 7 B on one host of each generation, by the cost model."""

    def bound(step: dict[str, float]) -> str:
        longest = max(("compute", "memory"), key=lambda name: step[name])
        return f"{longest}, {step['waiting'] / step['seconds']:.0%} waiting for links"

    def rows() -> Rows:
        for row in _figures("streams"):
            if "prefill" in row:
                prefill, decode = row["prefill"], row["decode"]
                yield (
                    f"{row['host']}, {row['chips']} chips",
                    row["weights"],
                    str(row["slots"]),
                    f"{prefill['memory_gib']:.1f} of {row['memory_limit_gib']:.1f}",
                    f"{prefill['seconds']:.2f} s, {prefill['tokens'] / prefill['seconds']:,.0f} tokens/s",
                    bound(prefill),
                    f"{1e3 * decode['seconds']:.1f} ms, {row['slots'] / decode['seconds']:,.0f} tokens/s",
                    bound(decode),
                )

    headings = (
        *("host", "weights", "requests", "memory a device, GiB", "512 tokens of each", "limited by"),
        *("one token of each", "limited by"),
    )
    return markdown(headings, rows(), "streams")


def adapters_table() -> str:
    """LoRA of 7 B on TPU hosts, from compiled steps of few layers."""
    rows = (
        (
            row["host"],
            f"{row['rows']} x 2048",
            f"{row['memory_gib']:.1f} of {row['memory_limit_gib']:.1f}",
            f"{row['seconds']:.2f} s",
            f"{row['mfu']:.0%}",
            " and ".join(map(str, row["layers"])),
        )
        for row in _figures("adapters")
    )
    headings = ("host", "tokens a step", "memory a chip, GiB", "step", "MFU", "layers compiled, of 32")
    return markdown(headings, rows, "adapters")


def pods_table() -> str:
    """Training steps of 7 B, compiled for pods."""
    from benchmarks.pods import cases

    found = _figures("pods")

    def rows() -> Rows:
        for name, (_, options) in cases().items():
            row, shown = found[name], " ".join(options[:-2])
            config, pod = name.removeprefix("spirit_lm_").rsplit(" ", 1)
            yield (
                config.removesuffix("_7b"),
                pod,
                f"`{shown}`" if shown else "",
                f"{row['memory_gib']:.1f} ({row['spare']:.0%})",
                f"{row['executed_per_model_flop']:.3f}",
                f"{row['step_seconds']:.2f} s",
                f"{row['mfu']:.0%}",
            )

    memory = "memory a device, GiB (to spare)"
    headings = ("7 B config", "pod", "options", memory, "executed / model FLOPs", "step", "MFU")
    return markdown(headings, rows(), "pods")


def speech_pods_table() -> str:
    """Training steps of HuBERT, compiled for pods."""
    from benchmarks.speech_pods import cases

    found = _figures("speech_pods")

    def rows() -> Rows:
        for name, (_, pod, options) in cases().items():
            row = found[name]
            yield (
                f"`{name.rsplit(' ', 1)[0]}`",
                pod,
                f"`{' '.join(options)}`" if options else "",
                f"{row['memory_gib']:.1f} ({row['spare']:.0%})",
                f"{row['step_seconds']:.2f} s",
                f"{row['mfu']:.0%}",
            )

    headings = ("config", "pod", "options", "memory a chip, GiB (to spare)", "step", "MFU")
    return markdown(headings, rows(), "speech_pods")


PUBLISHED: dict[str, tuple[tuple[float, ...], str]] = {
    "v5e-256": ((0.669, 0.611), "MaxText, 32 B model ([source][maxtext-v5e]); then the one of 16 B"),
    "v5p-128": ((0.715,), "MaxText, 32 B model ([source][maxtext-v5p])"),
    "v6e-256": ((0.455,), "MaxText, Llama 3.1 8 B, 7207 tokens/s a chip ([source][maxtext-tiers])"),
    "v4-128": ((0.567,), "MaxText, 22 B model ([source][maxtext-v4])"),
    "tpu7x-128": ((0.52,), "MaxText, Llama 3.1 70 B in bfloat16, 1207 TFLOP/s a chip ([source][ironwood])"),
}
"""The best published utilizations of models of comparable kind on each pod, and what they were."""


def published_table() -> str:
    """The bound of each pod, what others have published, and the step time that it would mean here."""
    found = _figures("pods")

    def rows() -> Rows:
        for pod, (reached, what) in PUBLISHED.items():
            row = found[f"spirit_lm_base_7b {pod}"]
            yield (
                pod,
                f"{row['mfu']:.0%}, {row['step_seconds']:.2f} s",
                ", ".join(f"{share:.1%}" for share in reached),
                what,
                ", ".join(f"{row['step_seconds'] * row['mfu'] / share:.2f} s" for share in reached),
            )

    return markdown(("pod", "bound here", "best published", "what it was", "step at that"), rows(), "pods")


def growth_table() -> str:
    """Fits of the growth curves."""
    from benchmarks.curves import Curve

    def rows() -> Rows:
        for curve in (Curve(**curve) for curve in _figures("growth")):
            found, memory = curve.fit(), f"{curve.memory_fit()} MB" if curve.memory else ""
            against = f"{curve.against}, {curve.x[0]:g} to {curve.x[-1]:g}"
            yield curve.what, against, f"{found} {curve.unit}", f"{found.largest_error:.0%}", memory

    return markdown(("what", "x", "fit", "largest error", "peak of memory"), rows(), "growth")


TABLES: dict[str, Callable[[], str]] = {
    name.removesuffix("_table"): function for name, function in list(globals().items()) if name.endswith("_table")
}
"""The tables by the names that pages use."""


def table(name: str) -> str:
    """Return the table of a name; where its result is missing, how to get it."""
    try:
        return TABLES[name]()
    except MissingResult as missing:
        return f"No result is kept yet; `python -m benchmarks.{missing} --json FILE` measures it."


def with_tables(text: str) -> str:
    """Return a page with its tables made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", text)


def main() -> int:
    """Write or check the tables of every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    stale = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (made := with_tables(text)) != text:
            stale += 1
            print(f"{page.name}: {'differs from benchmarks/results' if options.check else 'written'}")
            if not options.check:
                page.write_text(made, encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
