"""python tools/make_human_corpus.py [--output spirit_jax/corpora/bundled]

Makes the bundled corpus `asterisk_prompts`: the telephone prompts of Asterisk, read by Allison Smith, with transcripts
and word times. The recordings are those of two Debian packages:

    apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-g722
    pip install -e '.[corpus]'

The recordings (G.722, 16 kHz) are coded as OGG Opus, pocketsphinx finds the word times, and a recognizer hears each
clip. Clips whose transcript does not match are left out; the script prints how many and why. The license of the
recordings is CC BY-SA 3.0, and so is that of the corpus; its text and the attribution are written beside the corpus.
"""

import argparse
import collections
import gzip
import hashlib
import io
import pathlib
import re
from collections.abc import Iterator

import av
import numpy as np
import soundfile

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora import BUNDLED, Utterance, write_corpus
from spirit_jax.corpora.alignment.aligner import AlignmentError
from spirit_jax.corpora.alignment.spelling import spell
from spirit_jax.corpora.alignment.sphinx import SphinxAligner
from spirit_jax.corpora.resynthesis import word_error_rate
from spirit_jax.speech.asr import Recognizer, open_recognizer

NAME = "asterisk_prompts"
SPEAKER = "allison_smith"
RECORDINGS = pathlib.Path("/usr/share/asterisk/sounds/en_US_f_Allison")
DOCUMENTS = pathlib.Path("/usr/share/doc/asterisk-core-sounds-en")
COMPRESSION_LEVEL = 0.93  # of Opus in libsndfile: about 24 kbit/s
VALIDATION = 0.1  # share of the transcripts whose clips are held out
MIN_SCORE = 0.3  # mean word score of pocketsphinx; a transcript of another clip has about 0.2
MAX_ERROR_RATE, FEWEST_WORDS = 0.5, 4  # of the recognizer, which is judged on clips of this many words and more

NOTICE = """# asterisk_prompts

The recordings in this directory are prompts of the Asterisk telephone system ("Asterisk Core Sounds", version 1.6.1).

- Recorded by: Allison Smith (http://www.theivrvoice.com). Copyright 2003-2010, Allison Smith.
- Financial contributions: Digium, Inc. (http://www.digium.com).
- Source: http://downloads.asterisk.org/pub/telephony/asterisk/, as packaged by Debian in `asterisk-core-sounds-en` and
  `asterisk-core-sounds-en-g722`.
- License: Creative Commons Attribution-ShareAlike 3.0 (`LICENSE` beside this file,
  http://creativecommons.org/licenses/by-sa/3.0/).

The original work has been modified: `tools/make_human_corpus.py` coded the recordings as OGG Opus, selected those that
match their transcripts, took remarks out of the transcripts, and added the times of words.

This license covers the files in this directory. The code of spirit_jax has a license of its own.
"""


def transcripts() -> dict[str, str]:
    """The published transcript of each prompt by its name, such as "digits/1"."""
    with gzip.open(DOCUMENTS / "core-sounds-en.txt.gz", "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    return dict(line.split(":", 1) for line in lines if line and not line.startswith(";"))


def spoken_text(published: str) -> str:
    """The words of a transcript: without remarks and the dots of prompts that continue; signs as they are read."""
    text = re.sub(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>|\.\.\.", " ", published)
    text = re.sub(r"(?<!\w)\*(?!\w)", "star", text)
    text = re.sub(r"(?<!\w)#(?!\w)", "pound", text)
    return " ".join(text.split())


def decode(path: pathlib.Path) -> np.ndarray:
    """Samples of a G.722 file, float32 [R] at 16 kHz."""
    with av.open(str(path), format="g722") as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype(np.float32) / 32768


def encode(audio: np.ndarray) -> bytes:
    """The content of an OGG Opus file."""
    stream = io.BytesIO()
    soundfile.write(stream, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION_LEVEL)
    return stream.getvalue()


def plain(text: str) -> str:
    """Spoken words of a text, for comparing transcripts."""
    return " ".join(word for spelled in spell(text) for word in spelled.spoken)


class Clips:
    """Utterances of the prompts, and why others are left out."""

    def __init__(self, aligner: SphinxAligner, recognizer: Recognizer):
        self._aligner, self._recognizer = aligner, recognizer
        self.left_out: dict[str, list[str]] = collections.defaultdict(list)

    def __iter__(self) -> Iterator[Utterance]:
        published = transcripts()
        for path in sorted(RECORDINGS.rglob("*.g722")):
            name = path.relative_to(RECORDINGS).with_suffix("").as_posix()
            utterance = self._utterance(name, published.get(name), path)
            if isinstance(utterance, str):
                self.left_out[utterance].append(name)
            else:
                yield utterance

    def _utterance(self, name: str, published: str | None, path: pathlib.Path) -> Utterance | str:
        """The utterance of a prompt, or why it is left out."""
        if published is None:
            return "no transcript"
        text = spoken_text(published)
        if not text or "tone sound" in published:
            return "silence, a tone or another sound"
        # the audio as a reader of the corpus gets it
        content = encode(decode(path))
        utterance = Utterance(name, content, text, speaker=SPEAKER)
        audio = utterance.load()
        words = spell(text)
        (times,) = self._aligner.align([audio], [words])
        if isinstance(times, AlignmentError):
            return "pocketsphinx does not find the transcript"
        scores = [time.score for time in times if not time.interpolated]
        if not scores or sum(scores) / len(scores) < MIN_SCORE:
            return f"mean word score below {MIN_SCORE}"
        if len(words) >= FEWEST_WORDS:
            (heard,) = self._recognizer.transcribe([audio])
            if word_error_rate([text], [heard]) > MAX_ERROR_RATE:
                return f"word error rate of the recognizer above {MAX_ERROR_RATE}"
        spans_ms = np.array([(time.start_ms, time.end_ms) for time in times], np.int32)
        return Utterance(name, content, text, tuple(word.text for word in words), spans_ms, SPEAKER)


def is_held_out(utterance: Utterance) -> bool:
    """Whether an utterance is for validation; clips with one transcript are in one split."""
    digest = hashlib.sha256(plain(utterance.text).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < VALIDATION


def license_text() -> str:
    """The text of CC BY-SA 3.0 from the copyright file of the Debian package."""
    copyright_file = (DOCUMENTS / "copyright").read_text(encoding="utf-8")
    paragraph = next(part for part in copyright_file.split("\n\n") if part.startswith("License: CC-BY-SA-3.0"))
    lines = [line.removeprefix(" ").rstrip() for line in paragraph.splitlines()[1:]]
    return "\n".join("" if line == "." else line for line in lines).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=BUNDLED, help="TFDS data directory to write to")
    output = parser.parse_args().output
    clips = Clips(SphinxAligner(), open_recognizer("moonshine"))
    utterances = list(clips)
    splits = {
        "train": [utterance for utterance in utterances if not is_held_out(utterance)],
        "validation": [utterance for utterance in utterances if is_held_out(utterance)],
    }
    write_corpus(
        output,
        NAME,
        splits,
        description="Telephone prompts of Asterisk in English, read by Allison Smith, with word times. CC BY-SA 3.0.",
    )
    (output / NAME / "NOTICE.md").write_text(NOTICE, encoding="utf-8")
    (output / NAME / "LICENSE").write_text(license_text(), encoding="utf-8")
    for split, chosen in splits.items():
        seconds = sum(utterance.load().size for utterance in chosen) / SAMPLE_RATE
        print(f"{split}: {len(chosen)} clips, {seconds / 60:.1f} min, {sum(len(one.words) for one in chosen)} words")
    for reason, names in clips.left_out.items():
        print(f"left out, {reason}: {len(names)} ({', '.join(names)})")


if __name__ == "__main__":
    main()
