"""Continue every recording of a folder, many at a time; each continuation is written as soon as it is finished.

python examples/batch_over_folder.py CHECKPOINT RECORDINGS_DIRECTORY OUTPUT_DIRECTORY
"""

import pathlib
import sys

from spirit_jax import SamplingParams, Segment, SpiritLM
from spirit_jax.audio import save_audio

if len(sys.argv) != 4:
    sys.exit(__doc__)
checkpoint, recordings, output = sys.argv[1:]
paths = sorted(path for path in pathlib.Path(recordings).iterdir() if path.suffix in (".wav", ".flac", ".ogg"))
if not paths:
    sys.exit(f"{recordings}: no .wav, .flac or .ogg there")
pathlib.Path(output).mkdir(parents=True, exist_ok=True)
model = SpiritLM.from_pretrained(checkpoint)
prompts = [[Segment.speech(path)] for path in paths]
sampling = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=200)
for index, segments in model.as_completed(prompts, "speech", sampling, slots=16):
    for segment in segments:
        save_audio(f"{output}/{paths[index].stem}.wav", segment.audio)
    print(paths[index].name)
