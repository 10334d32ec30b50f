"""Continue every recording of a folder, many at a time; each continuation is written as soon as it is finished.

python examples/batch_over_folder.py CHECKPOINT RECORDINGS_DIRECTORY OUTPUT_DIRECTORY
"""

import collections
import pathlib
import sys

from spirit_jax import SamplingParams, Segment, SpiritLM, save_audio
from spirit_jax.audio import AUDIO_SUFFIXES
from spirit_jax.core.errors import SpiritError

if len(sys.argv) != 4:
    sys.exit(__doc__)
checkpoint, recordings, output = sys.argv[1:]
paths = sorted(
    path
    for path in pathlib.Path(recordings).iterdir()
    if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")  # macOS puts ._NAME beside NAME
)
prompts: dict[pathlib.Path, list[Segment]] = {}
for path in paths:
    try:
        prompts[path] = [Segment.speech(path)]
    except SpiritError as error:
        print(f"left out: {error}", file=sys.stderr)
if not prompts:
    sys.exit(f"{recordings}: no recordings there that can be read ({', '.join(AUDIO_SUFFIXES)})")
stems = collections.Counter(path.stem.lower() for path in prompts)
paths = list(prompts)
pathlib.Path(output).mkdir(parents=True, exist_ok=True)
model = SpiritLM.from_pretrained(checkpoint)
sampling = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=200)
for index, segments in model.as_completed(list(prompts.values()), "speech", sampling, slots=16):
    path = paths[index]
    name = path.stem if stems[path.stem.lower()] == 1 else path.name  # a.wav and a.flac have an output each
    for segment in segments:
        save_audio(f"{output}/{name}.wav", segment.audio)
    print(path.name)
