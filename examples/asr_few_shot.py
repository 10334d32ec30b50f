"""Transcribe a recording, after a few recordings with their transcripts (the prompt of the paper's ASR task).

python examples/asr_few_shot.py CHECKPOINT question.flac first.flac "its words" second.flac "its words" ...
"""

import sys

from spirit_jax import Segment, SpiritLM

if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
    sys.exit(__doc__)
checkpoint, question, *examples = sys.argv[1:]
model = SpiritLM.from_pretrained(checkpoint)
prompt = []
for recording, transcript in zip(examples[::2], examples[1::2], strict=True):
    prompt += [Segment.speech(recording), Segment.text(f" <START Transcript> {transcript} <END>")]
prompt += [Segment.speech(question), Segment.text(" <START Transcript>")]
(answer,) = model.generate(prompt, "text", max_new_tokens=100, stop="<END>")
print(answer.content)
