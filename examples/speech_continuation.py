"""Let the model go on speaking where a recording stops.

python examples/speech_continuation.py CHECKPOINT recording.flac continuation.wav
"""

import sys

from spirit_jax import Segment, SpiritLM
from spirit_jax.audio import save_audio

if len(sys.argv) != 4:
    sys.exit(__doc__)
checkpoint, recording, output = sys.argv[1:]
model = SpiritLM.from_pretrained(checkpoint)
segments = model.generate([Segment.speech(recording)], "speech", max_new_tokens=200, temperature=0.8, top_p=0.95)
for segment in segments:
    save_audio(output, segment.content)
    print(f"{output}: {segment.content.size / 16_000:.1f} s")
