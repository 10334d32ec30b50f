"""python -m benchmarks.data [--batches 150] [--workers 0 2] [--tokenizer DIR] [--place gs://BUCKET/NAME] [--json FILE]

Measures the data pipeline from record files to batches on realistic synthetic records: a third each of speech
(utterances of 2-16 s), interleaved aligned speech, and text documents (about 200-2000 tokens), mixed by tokens and
packed into rows of 4096. Prints tokens/s per core (a token is a slot of a row that is not padding), the share of each
stage, packing efficiency, the time to the first batch and the longest wait for a later batch. Goals: 500 k tokens/s per
core, 97 %, 1 s. With --place in a bucket the first batch waits until the records are in the local cache;
`python -m tests.support.buckets` serves a bucket.
"""

import argparse
import contextlib
import itertools
import tempfile
import time

import numpy as np

from benchmarks import report
from spirit_jax.data import loader, packing, sampling, source
from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.records import RecordSource, RecordWriter
from spirit_jax.data.sequences import Recipe, Sequencer
from spirit_jax.data.unit_record import UnitRecord
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

SOURCES: dict[str, Recipe] = {"speech": "speech", "aligned": "interleaved", "prose": "text"}
SEQUENCE_LENGTH, ROWS, SEED = 4096, 8, 0


class Language:
    """Pseudo-words of one to four syllables with Zipf's frequencies, about as hard for a tokenizer as English."""

    def __init__(self, rng: np.random.Generator, words: int = 60_000):
        onsets, vowels = "b c d f g h j k l m n p r s t v w st tr ch sh th pl".split(), "a e i o u ea ou".split()
        codas = ["", "", "", "n", "r", "s", "t", "l", "ng", "ck"]
        syllables = ["".join(parts) for parts in itertools.product(onsets, vowels, codas)]
        lengths = rng.integers(1, 5, 3 * words)
        drawn = ("".join(rng.choice(syllables, length)) for length in lengths)
        self._words = np.array(list(itertools.islice(dict.fromkeys(drawn), words)))
        self._words = self._words[np.argsort(np.char.str_len(self._words), kind="stable")]  # frequent words are short
        frequency = 1 / (np.arange(len(self._words)) + 5)
        self._cumulative = np.cumsum(frequency / frequency.sum())

    def words(self, rng: np.random.Generator, count: int) -> list[str]:
        """Random words."""
        return self._words[np.searchsorted(self._cumulative, rng.random(count))].tolist()

    def text(self, rng: np.random.Generator, count: int) -> str:
        """Random words in sentences and paragraphs."""
        words, sentence = self.words(rng, count), 0
        for index in range(count):
            if sentence == 0:
                words[index], sentence = words[index].capitalize(), int(rng.integers(4, 25))
            sentence -= 1
            if sentence == 0 and index + 1 < count:
                words[index] += "." if rng.random() < 0.8 else ".\n\n" + words[index + 1]
        return " ".join(words) + "."


def runs(rng: np.random.Generator, length: int, size: int, mean: float) -> np.ndarray:
    """Units in runs of geometric lengths with the given mean."""
    starts = rng.random(length) < 1 / mean
    starts[0] = True
    return rng.integers(0, size, length)[np.maximum.accumulate(np.where(starts, np.arange(length), 0))]


def speech_record(rng: np.random.Generator, language: Language, number: int, aligned: bool) -> UnitRecord:
    """An utterance as in LibriSpeech: mostly 10-16 s, 2.7 words/s, 60 % of its HuBERT units left by deduplication."""
    seconds = 16 - 14 * rng.beta(1.2, 3)
    words = language.words(rng, int(2.7 * seconds))
    edges = np.sort(rng.choice(int(seconds * 100), 2 * len(words), replace=False)).reshape(-1, 2) * 10
    frames = int(seconds * 25)
    units = SpeechUnits(
        runs(rng, frames, 501, 1.7), runs(rng, -(-frames // 2), 64, 1.5), rng.integers(0, 100, -(-frames // 25))
    )
    words, spans = (tuple(words), edges.astype(np.int32)) if aligned else ((), np.zeros((0, 2), np.int32))
    text = " ".join(words) or language.text(rng, 30)
    return UnitRecord(f"utterance-{number}", text, words, spans, units, int(seconds * 1000))


def write_records(directory: str, language: Language, records: int) -> None:
    """Write a directory of records for each source."""
    rng = np.random.default_rng(1)
    for name in SOURCES:
        with RecordWriter(f"{directory}/{name}", "train", shards=4) as writer:
            for number in range(records):
                if name == "prose":
                    text = language.text(rng, int(rng.integers(150, 1500)))
                    writer.write(UnitRecord(f"document-{number}", text))
                else:
                    writer.write(speech_record(rng, language, number, name == "aligned"))


STAGES = {
    "read (file, msgpack)": (RecordSource, "__getitem__"),
    "check the record": (UnitRecord, "validate"),
    "shuffle": (sampling.Shuffle, "__getitem__"),
    "draw spans": (source, "record_rng"),
    "tokenize text": (Vocabulary, "encode_text"),
    "interleave, merge units": (Sequencer, "__call__"),
    "choose documents": (packing.Packer, "take"),
    "lay out rows": (loader, "fill_row"),
}


@contextlib.contextmanager
def timed_stages():
    """Measure the seconds in each stage, without the time that a stage spends in another."""
    seconds, stack, originals = dict.fromkeys(STAGES, 0.0), [], {}

    def timed(name, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            stack.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent, inside = time.perf_counter() - start, stack.pop()
                seconds[name] += spent - inside
                if stack:
                    stack[-1] += spent

        return call

    for name, (owner, attribute) in STAGES.items():
        originals[name] = getattr(owner, attribute)
        setattr(owner, attribute, timed(name, originals[name]))
    try:
        yield seconds
    finally:
        for name, (owner, attribute) in STAGES.items():
            setattr(owner, attribute, originals[name])


def measure(config: DataConfig, vocabulary: Vocabulary, batches: int) -> dict[str, float]:
    """Take batches as fast as the loader gives them."""
    start = time.perf_counter()
    with loader.Loader(config, vocabulary, SEQUENCE_LENGTH, ROWS, SEED) as training_batches:
        next(training_batches)
        first, longest, tokens, by_source = time.perf_counter() - start, 0.0, 0, np.zeros(len(SOURCES))
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            before = time.perf_counter()
            batch = next(training_batches)
            longest = max(longest, time.perf_counter() - before)
            used = (batch["segment_ids"] > 0).sum(1)
            tokens += int(used.sum())
            np.add.at(by_source, batch["sources"], used)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    filled = tokens / (batches * ROWS * SEQUENCE_LENGTH)
    return {"first": first, "longest": longest, "wall": tokens / wall, "cpu": tokens / cpu, "filled": filled} | {
        name: count / tokens for name, count in zip(SOURCES, by_source, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=150, help=f"batches of {ROWS} rows of {SEQUENCE_LENGTH}")
    parser.add_argument("--records", type=int, default=3000, help="records of each source")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument(
        "--tokenizer", help="directory of a tokenizer; by default one of 32000 pieces is trained on the synthetic text"
    )
    parser.add_argument("--place", help="where to write the records, also in a bucket; by default a temporary folder")
    report.add_option(parser)
    arguments = parser.parse_args()

    where, figures = report.machine(), []
    language = Language(np.random.default_rng(0))
    start = time.perf_counter()
    if arguments.tokenizer:
        vocabulary = Vocabulary.load(arguments.tokenizer)
    else:
        rng = np.random.default_rng(2)
        vocabulary = Vocabulary.train([language.text(rng, 1000) for _ in range(600)], 32_000)
    print(f"tokenizer of {vocabulary.text_size} pieces, {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.place or scratch
        start = time.perf_counter()
        write_records(directory, language, arguments.records)
        print(f"{3 * arguments.records} records written, {time.perf_counter() - start:.1f} s")
        sources = {name: SourceConfig(f"{directory}/{name}", recipe) for name, recipe in SOURCES.items()}
        for workers in arguments.workers:
            got = measure(DataConfig(sources, workers=workers), vocabulary, arguments.batches)
            figures.append({"workers": workers, **got})
            print(f"\nworkers {workers}: {got['wall'] / 1e3:.0f} k tokens/s", end="")
            print(f", {got['cpu'] / 1e3:.0f} k tokens per CPU second of the one process" if not workers else "")
            first, longest = got["first"], got["longest"]
            print(f"  rows filled {got['filled']:.2%}; first batch after {first:.2f} s, longest wait {longest:.3f} s")
            print("  tokens: " + ", ".join(f"{name} {got[name]:.2%}" for name in SOURCES))
        with timed_stages() as seconds:
            got = measure(DataConfig(sources), vocabulary, arguments.batches)
        whole = arguments.batches * ROWS * SEQUENCE_LENGTH * got["filled"] / got["wall"]
        print("\nshare of each stage (the measurement takes some time, too):")
        for name, spent in sorted(
            (seconds | {"rest": whole - sum(seconds.values())}).items(), key=lambda item: -item[1]
        ):
            print(f"  {name:24s} {spent / whole:6.1%}")
        report.write(arguments.json, where, figures)


if __name__ == "__main__":
    main()
