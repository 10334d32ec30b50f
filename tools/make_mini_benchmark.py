"""python tools/make_mini_benchmark.py [--output spirit_jax/evaluation/bundled/mini]

Makes the bundled benchmark `mini` in the official layouts: words and non-words (`lexical/dev`), grammatical and
ungrammatical sentences (`syntactic/dev`), stories with a fitting and an unfitting ending (`stories`), recordings with a
consistent and an inconsistent tone or voice (`salmon`), and sentences in three tones (`stsp`). Words and sentences come
from the grammar of the bundled corpora, so that a model trained on these can do better than chance. eSpeak NG speaks
them, with voices that the corpora do not have. The texts are the same in every run; samples may differ, so the audio is
committed.
"""

import argparse
import collections
import csv
import io
import json
import pathlib
import random
import re
from collections.abc import Sequence

import numpy as np
import pocketsphinx
import soundfile
import soxr
from make_mini_corpus import COMPRESSION_LEVEL, PEAK, SAMPLE_RATE, SPEAKERS, Espeak
from mini_corpus_text import GRAMMAR, NAMES, Teller

from spirit_jax.core.files import atomic_directory, write_file
from spirit_jax.corpora import open_corpus
from spirit_jax.evaluation.task import BUNDLED

WORDS, PAIRS_OF_TYPE, STORIES, TONE_PAIRS, VOICE_PAIRS, TONE_CLIPS = 100, 18, 80, 30, 14, 15

# name -> (eSpeak voice + variant, pitch 0-99, pitch range 0-99, words per minute, gender)
VOICES = {
    "us_m6": ("en-us+m6", 40, 55, 175, "m"),
    "us_steph": ("en-us+steph", 55, 55, 180, "f"),
    "gb_victor": ("en+victor", 45, 55, 175, "m"),
    "gb_belinda": ("en+belinda", 55, 60, 180, "f"),
}
# tone -> (emotion and sentiment of STSP, change of pitch, of range, factor of the rate)
TONES = {
    "happy": ("positive", 25, 40, 1.15),
    "default": ("neutral", 0, 0, 1.0),
    "sad": ("negative", -25, -45, 0.8),
}
OTHER_TOPIC = 4  # stories from one to that whose ending is its unfitting one; even, so that the pronoun is the same
CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
PHONEME = 7  # kind of an event of eSpeak


class Recorder:
    """Speaks texts and writes them as OGG Opus files."""

    def __init__(self):
        self.espeak = Espeak()
        known = {voice for voice, *_ in SPEAKERS.values()}
        assert not known & {voice for voice, *_ in VOICES.values()}, "a voice of the training corpus"

    def phones(self, word: str) -> str:
        """The phones of a word, as eSpeak names them."""
        _, events = self.espeak.speak(word, VOICES["us_m6"][0], 50, 50, 175)
        return " ".join(label for kind, _, _, label in events if kind == PHONEME and not label.startswith("_")).strip()

    def speak(self, text: str, voice: str, tone: str = "default", seed: int = 0) -> np.ndarray:
        """Audio at 16 kHz with a little silence at both ends, float32."""
        name, pitch, pitch_range, rate, _ = VOICES[voice]
        _, higher, wider, faster = TONES[tone]
        samples, _ = self.espeak.speak(
            text,
            name,
            int(np.clip(pitch + higher, 0, 99)),
            int(np.clip(pitch_range + wider, 0, 99)),
            round(rate * faster),
        )
        audio = soxr.resample(samples.astype(np.float32) / 32768, self.espeak.rate, SAMPLE_RATE)
        loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
        audio = np.pad(audio[loud[0] : loud[-1] + 1], SAMPLE_RATE // 10) * (PEAK / np.abs(audio).max())
        return audio + np.random.default_rng(seed).normal(0, 1e-4, audio.size).astype(np.float32)


def save(path: pathlib.Path, audio: np.ndarray) -> None:
    """Write a clip; the suffix is added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    soundfile.write(stream, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION_LEVEL)
    path.with_name(path.name + ".ogg").write_bytes(stream.getvalue())


def write_gold(path: pathlib.Path, rows: Sequence[dict]) -> None:
    """Write a gold file with the columns of its rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def english_words() -> set[str]:
    """The words of CMU's pronouncing dictionary, which comes with pocketsphinx."""
    path = pathlib.Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))
    return {line.split("(")[0].split(" ")[0] for line in path.read_text().splitlines()}


def word_counts() -> collections.Counter[str]:
    """Number of times that each word occurs in the training splits of the bundled corpora."""
    texts = (item.text for name in ("spirit_mini", "spirit_mini_text") for item in open_corpus(name, "train"))
    return collections.Counter(word for text in texts for word in re.findall(r"\b[a-z]+\b", text))


def non_word(word: str, english: set[str], random_: random.Random) -> str | None:
    """A pronounceable string with one letter changed that is no English word; None if none is found.

    A vowel between consonants becomes another vowel, or a consonant between vowels another consonant.
    """
    for _ in range(50):
        place = random_.randrange(len(word))
        letters = VOWELS if word[place] in VOWELS else CONSONANTS
        around = word[max(place - 1, 0) : place] + word[place + 1 : place + 2]
        if word[place] not in letters or any((other in VOWELS) == (letters is VOWELS) for other in around):
            continue
        changed = word[:place] + random_.choice(letters.replace(word[place], "")) + word[place + 1 :]
        if changed not in english:
            return changed
    return None


def make_lexical(output: pathlib.Path, recorder: Recorder) -> None:
    """Words of the corpora and non-words, each in two voices."""
    random_, counts, english = random.Random(11), word_counts(), english_words()
    words = sorted(word for word in counts if 4 <= len(word) <= 9 and word in english)
    random_.shuffle(words)
    rows, index = [], 0
    for word in words:
        other = non_word(word, english, random_)
        if other is None or index == WORDS:
            continue
        phones = [recorder.phones(text) for text in (word, other)]
        if phones[0] == phones[1]:
            continue
        for voice in list(VOICES)[index % 2 :: 2]:
            for text, correct in ((word, 1), (other, 0)):
                name = f"{index:03d}_{voice}_{correct}"
                save(output / name, recorder.speak(text, voice, seed=index))
                rows.append(
                    {
                        "id": index,
                        "filename": name,
                        "voice": voice,
                        "frequency": counts[word] if correct else 0,
                        "word": text,
                        "phones": phones[1 - correct],
                        "length": len(phones[1 - correct].split()),
                        "correct": correct,
                    }
                )
        index += 1
    write_gold(output / "gold.csv", rows)


def sentence_pairs(random_: random.Random) -> list[tuple[str, str, str]]:
    """(type, grammatical, ungrammatical) sentences."""

    def verb() -> tuple[str, str, str]:
        base, past, things = random_.choice(teller.verbs)
        return base, past, random_.choice(things)

    pairs = []
    for index in range(PAIRS_OF_TYPE):
        teller = Teller(random_, sorted(GRAMMAR)[index % len(GRAMMAR)])
        who, place = teller.someone(), random_.choice(teller.places)
        base, past, thing = verb()
        pairs.append(("tense", f"why did {who} {base} {thing} {place}?", f"why did {who} {past} {thing} {place}?"))
        base, past, thing = verb()
        pairs.append(("infinitive", f"{who} wanted to {base} {thing}.", f"{who} wanted to {past} {thing}."))
        base, past, thing = verb()
        pairs.append(("order", f"{who} {past} {thing} {place}.", f"{who} {thing} {past} {place}."))
        base, past, thing = verb()
        while len(thing.split()) < 3:
            base, past, thing = verb()
        article, adjective, *rest = thing.split()
        turned = " ".join([adjective, article, *rest])
        pairs.append(("article", f"{who} {past} {thing} {place}.", f"{who} {past} {turned} {place}."))
        base, past, thing = verb()
        pairs.append(
            ("auxiliary", f"{who} did not {base} {thing} there.", f"{who} not did {base} {thing} there."),
        )
    return [(kind, good[0].upper() + good[1:], bad[0].upper() + bad[1:]) for kind, good, bad in pairs if good != bad]


def make_syntactic(output: pathlib.Path, recorder: Recorder) -> None:
    """Grammatical and ungrammatical sentences of five types, each pair in one voice."""
    rows = []
    for index, (kind, good, bad) in enumerate(sentence_pairs(random.Random(12))):
        voice = list(VOICES)[index % len(VOICES)]
        for text, correct in ((good, 1), (bad, 0)):
            name = f"{kind}_{index:03d}_{correct}"
            save(output / name, recorder.speak(text, voice, seed=index))
            rows.append(
                {
                    "id": index,
                    "filename": name,
                    "voice": voice,
                    "type": kind,
                    "subtype": kind,
                    "transcription": text,
                    "correct": correct,
                }
            )
    write_gold(output / "gold.csv", rows)


def make_stories(output: pathlib.Path, recorder: Recorder) -> None:
    """Two-sentence stories. The unfitting ending is the fitting one of another story on another topic.

    So each ending is once right and once wrong, and an ending that is likely by itself gives no advantage. Both endings
    have the same form and the same pronoun, so that they differ in the topic alone.
    """
    random_, topics = random.Random(13), sorted(GRAMMAR)
    assert STORIES % 2 == OTHER_TOPIC % 2 == 0
    assert OTHER_TOPIC % len(topics)
    stories = []
    for index in range(STORIES):
        teller, pronoun = Teller(random_, topics[index % len(topics)]), ("he", "she")[index % 2]
        (verb, place), (other_verb, other_place) = (
            (f"{past} {random_.choice(things)}", spot)
            for (_, past, things), spot in zip(
                random_.sample(teller.verbs, 2), random_.sample(teller.places, 2), strict=True
            )
        )
        name = random_.choice(NAMES[pronoun])
        stories.append((f"{name} {verb} {place}.", f"{pronoun.capitalize()} {other_verb} {other_place}."))
    for index, (first, second) in enumerate(stories):
        voice = list(VOICES)[index % len(VOICES)]
        other = stories[(index + OTHER_TOPIC) % STORIES][1]
        for role, text in (("mutual", first), ("correct", second), ("incorrect", other)):
            save(output / f"{index + 1}_{role}", recorder.speak(text, voice, seed=index))
            write_file(output / f"{index + 1}_{role}.txt", text + "\n")


def make_salmon(output: pathlib.Path, recorder: Recorder) -> None:
    """Two sentences in one tone, voice or gender, and the same with another one in the second sentence."""
    random_ = random.Random(14)

    def pair(part: str, index: int, kept: tuple[str, str], changed: tuple[str, str]) -> None:
        teller = Teller(random_)
        first, second = short_sentence(teller), short_sentence(teller)
        begin = recorder.speak(first, *kept, seed=index)
        for number, (voice, tone) in enumerate((kept, changed)):
            end = recorder.speak(second, voice, tone, seed=index)
            save(output / part / f"sample_{index}_{number}", np.concatenate([begin, end]))

    tones = list(TONES)
    for index in range(TONE_PAIRS):
        voice, tone = list(VOICES)[index % len(VOICES)], tones[index % 3]
        pair("sentiment_consistency", index, (voice, tone), (voice, tones[(index + 1 + index // 3 % 2) % 3]))
    for index in range(VOICE_PAIRS):
        kept = list(VOICES)[index % len(VOICES)]
        other = next(name for name in VOICES if VOICES[name][4] != VOICES[kept][4])
        pair("gender_consistency", index, (kept, "default"), (other, "default"))


def short_sentence(teller: Teller) -> str:
    """A sentence of at most nine words."""
    while len((text := teller.sentence()).split()) > 9:
        pass
    return text


def make_stsp(output: pathlib.Path, recorder: Recorder) -> None:
    """The same kind of sentences in three tones, in STSP's layout: `test.jsonl`, and `train.jsonl` for examples."""
    random_ = random.Random(15)
    for split in ("train", "test"):
        lines = []
        for index in range(TONE_CLIPS * len(TONES)):
            emotion, voice = list(TONES)[index % 3], list(VOICES)[index // 3 % len(VOICES)]
            text = short_sentence(Teller(random_))
            name = f"{split}_{index:03d}"
            save(output / "clips" / name, recorder.speak(text, voice, emotion, seed=index))
            lines.append(
                {
                    "id": name,
                    "wav_path": f"clips/{name}.ogg",
                    "sentiment": TONES[emotion][0],
                    "emotion": emotion,
                    "asr": text,
                    "split": split,
                    "speaker": voice,
                }
            )
        write_file(output / f"{split}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=BUNDLED, help="directory that is replaced")
    output = parser.parse_args().output
    recorder = Recorder()
    with atomic_directory(output, overwrite=True) as folder:
        make_lexical(folder / "lexical" / "dev", recorder)
        make_syntactic(folder / "syntactic" / "dev", recorder)
        make_stories(folder / "stories", recorder)
        make_salmon(folder / "salmon", recorder)
        make_stsp(folder / "stsp", recorder)
        save(folder / "stop", recorder.speak("stop", "us_m6"))  # ends the answers of the text-to-speech task


if __name__ == "__main__":
    main()
