"""Accuracy and speed of the aligners.

    python -m benchmarks.align [--parts bundled prompts search] [--clips 64] [--prompts asterisk_prompts] [--words 200]
        [--seeds 0]

- bundled: on the bundled corpus, whose word times are exact, the distance of word starts and ends from the truth, for
  pocketsphinx and for an aligner trained on the training split; on the validation split, which it has not heard.
- prompts: on recordings of a human voice, how far an aligner that is trained on them is from pocketsphinx, and how many
  words Moonshine hears when they are cut out at the times of each. It adds words such as "the" to words alone, so a
  word counts as heard if it is among what is written. Times that are 0.2 s late show what this measure tells apart.
- search: the batched search under jit against one in plain NumPy, which treats all states of a frame at once, in
  alternating rounds on the same scores.

Only the ratio of the search can be compared between machines.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.alignment.aligner import Aligner, AlignmentError, WordTime
from spirit_jax.corpora.alignment.ctc_aligner import CTCAligner
from spirit_jax.corpora.alignment.spelling import SpelledWord, spell
from spirit_jax.corpora.alignment.sphinx import SphinxAligner
from spirit_jax.corpora.alignment.training import AlignerTraining, trained_network
from spirit_jax.corpora.inputs import Input, open_input
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.models.ctc import forced_alignment
from spirit_jax.speech.asr import open_recognizer

PARTS = ("search", "bundled", "prompts")
MARGIN_MS = 30
"""Audio on each side of a word that is cut out."""


def spans(times: Sequence[WordTime]) -> np.ndarray:
    """Starts and ends in milliseconds, [W, 2]."""
    return np.array([(time.start_ms, time.end_ms) for time in times])


def train(corpus: Input, directory: pathlib.Path, seed: int) -> CTCAligner:
    """Train an aligner and print how long it took."""
    started = time.perf_counter()
    network = trained_network(corpus, directory / f"{corpus.name}-{seed}", training=AlignerTraining(seed=seed))
    print(f"trained on {corpus.name} {corpus.split} with seed {seed} in {time.perf_counter() - started:.0f} s")
    return CTCAligner(network)


def bundled(aligners: dict[str, Aligner], corpus: Input, clips: int) -> None:
    """Print the boundary errors of each aligner on the bundled corpus."""
    utterances = [corpus[index] for index in range(min(clips, len(corpus)))]
    audio = [utterance.load() for utterance in utterances]
    transcripts = [spell(" ".join(utterance.words)) for utterance in utterances]
    for name, aligner in aligners.items():
        started = time.perf_counter()
        found = aligner.align(audio, transcripts)
        seconds = time.perf_counter() - started
        errors = [
            np.abs(spans(times) - utterance.spans_ms)
            for times, utterance in zip(found, utterances, strict=True)
            if not isinstance(times, AlignmentError)
        ]
        error = np.concatenate(errors)
        rate = sum(clip.size for clip in audio) / SAMPLE_RATE / seconds
        print(
            f"{corpus.split:>10}  {name:<13} {len(errors)} of {len(utterances)} clips, {len(error)} words: mean "
            f"{error.mean():.1f} ms, 90th percentile {np.percentile(error, 90):.1f} ms, within 50 ms "
            f"{(error <= 50).mean():.1%}; {rate:.0f} x real time"
        )


def prompts(corpus: Input, directory: pathlib.Path, words: int, seed: int) -> None:
    """Print the agreement of two aligners on real speech, and how well the words that they find are recognized."""
    utterances: list[Utterance] = []
    for index in range(len(corpus)):
        try:
            corpus[index].load()
            utterances.append(corpus[index])
        except CorpusError:
            continue
    audio = [utterance.load() for utterance in utterances]
    transcripts = [spell(utterance.text) for utterance in utterances]
    minutes = sum(clip.size for clip in audio) / SAMPLE_RATE / 60
    aligners = {"pocketsphinx": SphinxAligner(), "train": train(corpus, directory, seed)}
    found = {name: aligner.align(audio, transcripts) for name, aligner in aligners.items()}
    both = [
        i for i in range(len(audio)) if not any(isinstance(results[i], AlignmentError) for results in found.values())
    ]
    aligned = {
        name: [times for i in both if not isinstance(times := results[i], AlignmentError)]
        for name, results in found.items()
    }
    differences = np.concatenate([np.abs(spans(a) - spans(b)) for a, b in zip(*aligned.values(), strict=True)])
    print(
        f"real prompts: {len(audio)} clips, {minutes:.1f} min, {len(both)} aligned by both; train and pocketsphinx "
        f"differ by {np.median(differences):.1f} ms (median), {differences.mean():.1f} ms (mean), "
        f"{(differences <= 50).mean():.1%} within 50 ms"
    )
    rows = [(name, times, 0) for name, times in aligned.items()]
    rows.append(("pocketsphinx, 0.2 s late", aligned["pocketsphinx"], 200))
    cut_out_words(rows, [audio[i] for i in both], [transcripts[i] for i in both], words)


def cut_out_words(
    rows: Sequence[tuple[str, Sequence[Sequence[WordTime]], int]],
    audio: Sequence[np.ndarray],
    transcripts: Sequence[Sequence[SpelledWord]],
    words: int,
) -> None:
    """Print how many words a recognizer hears in what is cut out, for each row of a name, times and a shift in ms."""
    recognizer = open_recognizer("moonshine")
    # Words long enough to be recognized alone, drawn at random.
    candidates = [(k, w) for k, line in enumerate(transcripts) for w, word in enumerate(line) if len(word.text) >= 5]
    chosen = np.random.default_rng(0).permutation(len(candidates))[:words]
    for name, times, shift in rows:
        heard = 0
        for place in chosen:
            k, w = candidates[place]
            span = (times[k][w].start_ms - MARGIN_MS + shift, times[k][w].end_ms + MARGIN_MS + shift)
            start, end = (max(0, ms * SAMPLE_RATE // 1000) for ms in span)
            cut = np.pad(audio[k][start:end], SAMPLE_RATE)  # with less silence it writes words of its own
            (text,) = recognizer.transcribe([cut])
            parts = {part for word in spell(text) for part in word.spoken}
            heard += parts.issuperset(transcripts[k][w].spoken)
        print(f"words cut out at the times of {name}: {len(chosen)}, heard {heard / len(chosen):.1%}", flush=True)


def numpy_viterbi(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The states of the best path; every frame treats its states at once."""
    symbols = np.zeros(2 * len(labels) + 1, int)
    symbols[1::2] = labels
    skips = np.zeros(len(symbols), bool)
    skips[3::2] = labels[1:] != labels[:-1]
    score = np.full(len(symbols), -1e30)
    score[0] = 0.0
    moves = np.zeros((len(log_probs), len(symbols)), np.int8)
    for frame, emission in enumerate(log_probs):
        one = np.concatenate([[-1e30], score[:-1]])
        two = np.where(skips, np.concatenate([[-1e30, -1e30], score[:-2]]), -1e30)
        best = np.maximum(np.maximum(score, one), two)
        moves[frame] = np.where(score == best, 0, np.where(one == best, 1, 2))
        score = best + emission[symbols]
    state = len(symbols) - 1 - int(score[-2] > score[-1])
    path = np.zeros(len(log_probs), int)
    for frame in range(len(log_probs) - 1, -1, -1):
        path[frame] = state
        state -= int(moves[frame, state])
    return path


def speed(rows: int = 32, frames: int = 1000, labels: int = 150, rounds: int = 5) -> None:
    """Print the time of the batched search over that of NumPy, row by row, after a check that both find one path."""
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(40), (rows, frames))).astype(np.float32)
    symbols = rng.integers(1, 40, (rows, labels))
    search = jax.jit(forced_alignment)
    given = (log_probs, np.full(rows, frames), symbols, np.full(rows, labels))
    paths = np.asarray(search(*given).labels_bt)
    same = np.array([(numpy_viterbi(log_probs[r], symbols[r]) - 1) // 2 for r in range(rows)])
    assert ((paths == same) | (paths < 0)).all()
    ratios = []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(search(*given))
        ours = time.perf_counter() - started
        started = time.perf_counter()
        for row in range(rows):
            numpy_viterbi(log_probs[row], symbols[row])
        ratios.append((time.perf_counter() - started) / ours)
    print(
        f"search: {rows} clips of {frames} frames with {labels} labels take {ours * 1000:.0f} ms; plain NumPy takes "
        f"{np.median(ratios):.1f} times as long (median of {rounds} rounds)"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--clips", type=int, default=64, help="validation clips of the bundled corpus")
    parser.add_argument("--prompts", default="asterisk_prompts", help="real recordings with transcripts; any input")
    parser.add_argument("--words", type=int, default=200, help="words to cut out and recognize")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the aligners that are trained")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        if "search" in options.parts:
            speed()
        if "bundled" in options.parts:
            aligners: dict[str, Aligner] = {"pocketsphinx": SphinxAligner()}
            for seed in options.seeds:
                aligners[f"train, seed {seed}"] = train(open_input("spirit_mini", "train"), directory, seed)
            bundled(aligners, open_input("spirit_mini", "validation"), options.clips)
        if "prompts" in options.parts:
            prompts(open_input(options.prompts, "train"), directory, options.words, options.seeds[0])


if __name__ == "__main__":
    main()
