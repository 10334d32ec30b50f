"""Continue a recording: the model speaks on where the recording stops.

python examples/speech_continuation.py CHECKPOINT recording.flac continuation.wav
"""

import sys

from spirit_jax import SamplingParams, Segment, SpiritLM
from spirit_jax.audio import save_audio

if len(sys.argv) != 4:
    sys.exit(__doc__)
checkpoint, recording, output = sys.argv[1:]
model = SpiritLM.from_pretrained(checkpoint)
sampling = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=200)
for segment in model.generate([Segment.speech(recording)], "speech", sampling):
    save_audio(output, segment.audio)
    print(f"{output}: {segment.audio.size / 16_000:.1f} s")
