"""Read a text aloud, after a few texts with their recordings.

python examples/tts_few_shot.py CHECKPOINT "text to read" spoken.wav "its words" first.flac "its words" second.flac ...
"""

import sys

from spirit_jax import SamplingParams, Segment, SpiritLM
from spirit_jax.audio import save_audio

if len(sys.argv) < 4 or len(sys.argv) % 2 == 1:
    sys.exit(__doc__)
checkpoint, text, output, *examples = sys.argv[1:]
model = SpiritLM.from_pretrained(checkpoint)
prompt = []
for words, recording in zip(examples[::2], examples[1::2], strict=True):
    prompt += [Segment.text(f" {words} 'stop' "), Segment.speech(recording)]
prompt.append(Segment.text(f" {text} 'stop' "))
for segment in model.generate(prompt, "speech", SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=300)):
    save_audio(output, segment.audio)
    print(f"{output}: {segment.audio.size / 16_000:.1f} s")
