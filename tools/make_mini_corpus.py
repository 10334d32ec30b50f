"""python tools/make_mini_corpus.py [--output spirit_jax/corpora/bundled]

Makes the two bundled corpora, `spirit_mini` (speech, transcripts, word times) and `spirit_mini_text`. The sentences
come from the grammar in `mini_corpus_text.py`. eSpeak NG speaks them through the `espeakng-loader` wheel, and they are
stored as OGG Opus in prepared TFDS directories. eSpeak NG is GPL-3, and only this script needs it. Word times are those
of the synthesizer's events. They are the same in every run. Samples may differ because of noise sources, so the audio
is committed.
"""

import argparse
import ctypes
import io
import logging
import pathlib
import random
from collections.abc import Iterator

import espeakng_loader
import numpy as np
import soundfile
import soxr
from mini_corpus_text import HAND_WRITTEN, sentences, stories

from spirit_jax.corpora import BUNDLED, Utterance, write_corpus

SAMPLE_RATE = 16_000
COMPRESSION_LEVEL = 0.95  # of Opus in libsndfile: 0 is 256 kbit/s, 1 is 6 kbit/s, and this is about 18 kbit/s
PEAK = 0.7  # largest sample of an utterance
TRAIN, VALIDATION, STORIES, VALIDATION_STORIES = 480, 64, 3000, 100  # utterances and documents of each split

# speaker -> (eSpeak voice + variant, pitch 0-99, pitch range 0-99, words per minute)
SPEAKERS = {
    "us_m1": ("en-us+m1", 40, 50, 175),
    "us_m3": ("en-us+m3", 30, 60, 185),
    "us_m7": ("en-us+m7", 50, 40, 165),
    "us_f2": ("en-us+f2", 55, 55, 180),
    "us_f4": ("en-us+f4", 65, 50, 190),
    "us_adam": ("en-us+adam", 45, 60, 180),
    "us_linda": ("en-us+linda", 50, 55, 175),
    "gb_m2": ("en+m2", 45, 55, 180),
    "gb_f1": ("en+f1", 60, 60, 185),
    "gb_f3": ("en+f3", 50, 65, 170),
    "rp_m4": ("en-gb-x-rp+m4", 35, 70, 190),
    "rp_f5": ("en-gb-x-rp+f5", 60, 45, 175),
    "sc_m8": ("en-gb-scotland+m8", 40, 65, 175),
    "sc_f2": ("en-gb-scotland+f2", 70, 60, 180),
    "nyc_m5": ("en-us-nyc+m5", 40, 60, 185),
    "nyc_f1": ("en-us-nyc+f1", 45, 70, 195),
}


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_LIST_TERMINATED, _WORD, _PHONEME = 0, 1, 7
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1


# second word of a pair that eSpeak speaks as one word -> start of its first phone ("" is any phone)
_SECOND_OF_PAIR = {"the": "D", "a": "", "not": "n", "been": "b"}


class Espeak:
    """The eSpeak NG library: text to samples, with the times of words and phones."""

    def __init__(self):
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS)
        if self.rate <= 0:
            raise RuntimeError("eSpeak NG did not initialize")
        self.callback = _CALLBACK(self._receive)  # referenced here because the library holds only a pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _LIST_TERMINATED:
            event = events[index]
            label = event.id.string.decode("utf-8", "replace") if event.type == _PHONEME else ""
            self.events.append((event.type, event.text_position, event.sample, label))
            index += 1
        return 0

    def speak(self, text: str, voice: str, pitch: int, pitch_range: int, rate: int) -> tuple[np.ndarray, list[tuple]]:
        """Speak a text.

        Returns:
            int16 samples at `self.rate`, and events (type, text position, sample, phone).
        """
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.chunks, self.events = [], []
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        return np.concatenate(self.chunks), self.events


def word_spans(text: str, events: list[tuple], samples: int) -> list[tuple[int, int]] | None:
    """Start and end in samples of every blank-separated word, or None if the events do not match the words.

    A word starts at its WORD event and ends at the first pause phone ("_...") after it, or at the next word. The text
    position of an event may be off by one, so it belongs to the nearest start of a word.
    """
    words, position, starts_in_text = text.split(), 0, []
    for word in words:
        position = text.index(word, position)
        starts_in_text.append(position + 1)  # eSpeak counts from one
        position += len(word)
    starts: dict[int, int] = {}
    for kind, at, sample, _ in events:
        if kind == _WORD:
            nearest = min(range(len(words)), key=lambda i: abs(starts_in_text[i] - at))
            if abs(starts_in_text[nearest] - at) <= 1:
                starts.setdefault(nearest, sample)
    phones = [(sample, label) for kind, _, sample, label in events if kind == _PHONEME]
    for i in set(range(1, len(words))) - set(starts):  # eSpeak speaks some pairs ("in the", "did not") as one word
        if words[i] not in _SECOND_OF_PAIR or i - 1 not in starts:
            return None
        until = starts.get(i + 1, samples)
        inside = [
            at for at, label in phones if starts[i - 1] < at < until and label.startswith(_SECOND_OF_PAIR[words[i]])
        ]
        if not inside:
            return None
        starts[i] = inside[-1]
    if sorted(starts) != list(range(len(words))):
        return None
    pauses = [at for at, label in phones if label.startswith("_")]
    spans = []
    for i in range(len(words)):
        until = starts.get(i + 1, samples)
        spans.append((starts[i], min([p for p in pauses if starts[i] < p < until], default=until)))
    return spans if all(end > start for start, end in spans) else None


def synthesize(espeak: Espeak, name: str, text: str, speaker: str, random_: random.Random) -> Utterance | None:
    """Speak one sentence with varied pitch and rate; None if its events do not match its words."""
    voice, pitch, pitch_range, rate = SPEAKERS[speaker]
    pitch, pitch_range = pitch + random_.randint(-8, 8), pitch_range + random_.randint(-15, 15)
    rate = round(rate * random_.uniform(0.85, 1.2))
    samples, events = espeak.speak(text, voice, pitch, pitch_range, rate)
    spans = word_spans(text, events, len(samples))
    if spans is None:
        return None
    audio = soxr.resample(samples.astype(np.float32) / 32768, espeak.rate, SAMPLE_RATE)
    # a pause of 60-200 ms on either side, and a faint noise floor like a microphone's
    before, after = (random_.randint(60, 200) * SAMPLE_RATE // 1000 for _ in range(2))
    end = spans[-1][1] * SAMPLE_RATE // espeak.rate
    audio = np.pad(audio[:end], (before, after)) * (PEAK / np.abs(audio).max())
    audio += np.random.default_rng(random_.getrandbits(32)).normal(0, 1e-4, audio.size)
    stream = io.BytesIO()
    soundfile.write(stream, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION_LEVEL)
    spans_ms = np.round(np.array(spans) * 1000 / espeak.rate + before * 1000 / SAMPLE_RATE).astype(np.int32)
    return Utterance(name, stream.getvalue(), text, tuple(text.split()), spans_ms, speaker)


def speech(split: str, texts: list[str], seed: int) -> Iterator[Utterance]:
    """Speak sentences with all speakers in turn."""
    espeak, random_ = Espeak(), random.Random(seed)
    for index, text in enumerate(texts):
        name, speaker = f"{split}-{index:04d}", list(SPEAKERS)[index % len(SPEAKERS)]
        utterance = synthesize(espeak, name, text, speaker, random_)
        if utterance is None:
            logging.warning("%s left out, its events do not match its words: %s", name, text)
        else:
            yield utterance


def documents(split: str, texts: list[str]) -> Iterator[Utterance]:
    """Documents of text alone."""
    for index, text in enumerate(texts):
        yield Utterance(f"{split}-{index:05d}", None, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=BUNDLED, help="TFDS data directory to write to")
    output = parser.parse_args().output
    # half of the sentences have 12 words or more, so that text and speech spans of the paper's lengths occur
    drawn = sentences((TRAIN + VALIDATION) // 2, 1, 5, 11) + sentences((TRAIN + VALIDATION) // 2, 2, 12, 18)
    drawn[-len(HAND_WRITTEN) :] = HAND_WRITTEN
    random.Random(3).shuffle(drawn)
    validation = drawn[TRAIN:]
    write_corpus(
        output,
        "spirit_mini",
        {"train": speech("train", drawn[:TRAIN], 4), "validation": speech("validation", validation, 5)},
        description="English sentences from a small grammar, spoken by 16 eSpeak NG voices, with word times.",
    )
    forbidden = set(validation)
    write_corpus(
        output,
        "spirit_mini_text",
        {
            "train": documents("train", stories(STORIES, 6, forbidden)),
            "validation": documents("validation", stories(VALIDATION_STORIES, 7, forbidden)),
        },
        description="Short stories from the grammar of spirit_mini; text only.",
    )


if __name__ == "__main__":
    main()
