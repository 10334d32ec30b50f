"""python tools/make_ablation_data.py [--output runs/ablations/data]

Makes the data of the ablations (docs/ablations.md): `ablation_stories`, a spoken corpus with word times, and tests of
stories and of tone in the layouts of the bundled benchmark `mini`. A story has sentences such as "Tom baked the bread."
about one of six topics. Each sentence has a verb and an object of its topic. A quarter of the pairs of verb and object
are in no training story. The tests consist of these alone: all of their sentences are new, and all of their words are
known. eSpeak NG speaks the stories in two voices and three tones. The result takes a minute, is the same in every run
but for the noise of the synthesizer, and is not committed.
"""

import argparse
import io
import pathlib
import random
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr
from make_mini_corpus import SAMPLE_RATE, Espeak, word_spans

from spirit_jax.core.files import atomic_directory, write_file
from spirit_jax.corpora import Utterance, write_corpus

TRAIN, VALIDATION, SENTENCES = 3000, 60, 3  # stories of each split, sentences of a story
STORIES, TONE_PAIRS = 300, 150  # test items
PAUSE = SAMPLE_RATE * 60 // 1000  # silence before and after a sentence
PEAK = 0.7  # largest sample of a sentence

# topic -> verbs; objects. Every verb goes with every object of its topic.
TOPICS = {
    "kitchen": ("baked fried tasted served", "bread fish cake soup eggs onions"),
    "garden": ("planted watered picked smelled", "roses apples grass tulips beans lettuce"),
    "harbor": ("sailed painted towed anchored", "boat ferry yacht raft canoe ship"),
    "music": ("played tuned practiced recorded", "violin piano drum flute harp guitar"),
    "office": ("signed mailed typed printed", "letter contract report form memo invoice"),
    "closet": ("wore folded ironed knitted", "shirt sweater jacket scarf dress gloves"),
}
NAMES = {"he": "Tom Adam Victor Hugo".split(), "she": "Kate Maria Rosa Linda".split()}

# name -> (eSpeak voice + variant, pitch 0-99, pitch range 0-99, words per minute)
VOICES = {"m3": ("en-us+m3", 40, 50, 200), "f2": ("en-us+f2", 55, 50, 200)}
# tone -> change of pitch, of range, factor of the rate
TONES = {"happy": (25, 40, 1.12), "default": (0, 0, 1.0), "sad": (-25, -45, 0.85)}


def pairs(topic: str, held_out: bool) -> list[tuple[str, str]]:
    """The pairs of verb and object of a topic that are in training stories, or those that are not."""
    verbs, objects = (words.split() for words in TOPICS[topic])
    return [
        (verb, thing)
        for row, verb in enumerate(verbs)
        for column, thing in enumerate(objects)
        if ((row + column) % len(verbs) == 0) == held_out
    ]


def story(random_: random.Random, topic: str, sentences: int, held_out: bool, pronoun: str | None = None) -> list[str]:
    """The sentences of a story; each has another pair of verb and object. The pronoun is drawn by default."""
    pronoun = pronoun or random_.choice(sorted(NAMES))
    name = random_.choice(NAMES[pronoun])
    subjects = [name] + [pronoun.capitalize()] * (sentences - 1)
    chosen = random_.sample(pairs(topic, held_out), sentences)
    return [f"{subject} {verb} the {thing}." for subject, (verb, thing) in zip(subjects, chosen, strict=True)]


class Recorder:
    """Speaks sentences, each with the same silence before and after it."""

    def __init__(self) -> None:
        self.espeak = Espeak()
        self._spoken: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}

    def sentence(self, text: str, voice: str, tone: str) -> tuple[np.ndarray, np.ndarray]:
        """Audio at 16 kHz, float32 [R], and start and end of its words in samples, [W, 2]."""
        if (text, voice, tone) not in self._spoken:
            self._spoken[text, voice, tone] = self._speak(text, voice, tone)
        return self._spoken[text, voice, tone]

    def _speak(self, text: str, voice: str, tone: str) -> tuple[np.ndarray, np.ndarray]:
        name, pitch, pitch_range, rate = VOICES[voice]
        higher, wider, faster = TONES[tone]
        pitch, pitch_range = (int(np.clip(value, 0, 99)) for value in (pitch + higher, pitch_range + wider))
        samples, events = self.espeak.speak(text, name, pitch, pitch_range, round(rate * faster))
        spans = word_spans(text, events, len(samples))
        if spans is None:
            raise RuntimeError(f"eSpeak NG gave no times for the words of {text!r}")
        audio = soxr.resample(samples.astype(np.float32) / 32768, self.espeak.rate, SAMPLE_RATE)
        times = np.array(spans) * SAMPLE_RATE // self.espeak.rate
        first, last = times[0, 0], times[-1, 1]
        audio = np.pad(audio[first:last], PAUSE)
        return audio * (PEAK / np.abs(audio).max()), times - first + PAUSE

    def story(self, sentences: list[str], voice: str, tone: str) -> tuple[np.ndarray, np.ndarray]:
        """The sentences one after the other: audio [R], and start and end of all words in samples, [W, 2]."""
        spoken = [self.sentence(text, voice, tone) for text in sentences]
        starts = np.cumsum([0, *(len(audio) for audio, _ in spoken[:-1])])
        spans = np.concatenate([times + start for (_, times), start in zip(spoken, starts, strict=True)])
        return np.concatenate([audio for audio, _ in spoken]), spans


def noisy(audio: np.ndarray, seed: int) -> bytes:
    """A FLAC file of audio with a faint noise floor like a microphone's."""
    noise = np.random.default_rng(seed).normal(0, 1e-4, audio.size).astype(np.float32)
    stream = io.BytesIO()
    soundfile.write(stream, audio + noise, SAMPLE_RATE, format="FLAC")
    return stream.getvalue()


def corpus(split: str, count: int, seed: int, recorder: Recorder) -> Iterator[Utterance]:
    """Stories with topics, voices and tones drawn at random."""
    random_ = random.Random(seed)
    for index in range(count):
        topic, voice, tone = (random_.choice(sorted(names)) for names in (TOPICS, VOICES, TONES))
        sentences = story(random_, topic, SENTENCES, held_out=False)
        audio, spans = recorder.story(sentences, voice, tone)
        text = " ".join(sentences)
        spans_ms = np.round(spans * 1000 / SAMPLE_RATE).astype(np.int32)
        speaker = f"{voice}_{tone}"
        yield Utterance(f"{split}-{index:05d}", noisy(audio, index), text, tuple(text.split()), spans_ms, speaker)


def make_stories(output: pathlib.Path, recorder: Recorder) -> None:
    """Two-sentence stories. The unfitting ending is the fitting one of another story on another topic.

    Stories come in blocks, one of each topic, in one voice and tone and with one pronoun. The endings of a block change
    places. So each recording of an ending is once right and once wrong: one that is likely by itself, for its words or
    for its sound, gives no advantage.
    """
    random_, topics = random.Random(13), sorted(TOPICS)
    for number in range(STORIES // len(topics)):
        pronoun = ("he", "she")[number % 2]
        voice, tone = list(VOICES)[number // 2 % 2], list(TONES)[number // 4 % 3]
        block = [story(random_, topic, 2, held_out=True, pronoun=pronoun) for topic in topics]
        shift = 1 + number % (len(topics) - 1)
        for place, (first, second) in enumerate(block):
            other = block[(place + shift) % len(topics)][1]
            name = str(number * len(topics) + place + 1)
            for role, text in (("mutual", first), ("correct", second), ("incorrect", other)):
                write_file(output / f"{name}_{role}.txt", text + "\n")
                audio, _ = recorder.sentence(text, voice, tone)
                (output / f"{name}_{role}.flac").write_bytes(noisy(audio, number))


def make_tone(output: pathlib.Path, recorder: Recorder) -> None:
    """Two sentences in one tone, and the same with another tone in the second sentence."""
    random_, tones = random.Random(14), list(TONES)
    folder = output / "sentiment_consistency"
    for index in range(TONE_PAIRS):
        topic = random_.choice(sorted(TOPICS))
        first, second = story(random_, topic, 2, held_out=True)
        voice, kept = list(VOICES)[index % 2], tones[index % 3]
        changed = tones[(index + 1 + index // 3 % 2) % 3]
        begin, _ = recorder.sentence(first, voice, kept)
        for number, tone in enumerate((kept, changed)):
            audio = np.concatenate([begin, recorder.sentence(second, voice, tone)[0]])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"sample_{index}_{number}.flac").write_bytes(noisy(audio, index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("runs/ablations/data"), help="directory that is replaced"
    )
    output = parser.parse_args().output
    recorder = Recorder()
    with atomic_directory(output, overwrite=True) as folder:
        splits = {"train": (TRAIN, 1), "validation": (VALIDATION, 2)}
        utterances = {split: corpus(split, count, seed, recorder) for split, (count, seed) in splits.items()}
        write_corpus(folder, "ablation_stories", utterances, "Short stories, spoken by eSpeak NG in three tones.")
        make_stories(folder / "stories", recorder)
        make_tone(folder / "tone", recorder)
    print(f"{output}: {TRAIN} training stories, {STORIES} stories and {TONE_PAIRS} tones to test")


if __name__ == "__main__":
    main()
