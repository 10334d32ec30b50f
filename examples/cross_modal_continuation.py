"""Continue a text with speech, and a recording with text or with whatever the model chooses.

python examples/cross_modal_continuation.py CHECKPOINT "The largest country is" recording.flac OUTPUT_DIRECTORY
"""

import pathlib
import sys

from spirit_jax import SamplingParams, Segment, SpiritLM
from spirit_jax.audio import save_audio

if len(sys.argv) != 5:
    sys.exit(__doc__)
checkpoint, text, recording, directory = sys.argv[1:]
pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
model = SpiritLM.from_pretrained(checkpoint)
sampling = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=200)
answers = {
    "text_to_speech": model.generate([Segment.text(text)], "speech", sampling),
    "speech_to_text": model.generate([Segment.speech(recording)], "text", sampling, max_new_tokens=50),
    "speech_to_any": model.generate([Segment.speech(recording)], "any", sampling),
}
for name, segments in answers.items():
    for number, segment in enumerate(segments, 1):
        if segment.kind == "text":
            print(f"{name}: {segment.content}")
        else:
            path = f"{directory}/{name}-{number}.wav"
            save_audio(path, segment.audio)
            print(f"{name}: {path}")
