"""Word times for speech with transcripts: forced alignment, and the files that hold it.

`spelling` turns a transcript into words that can be spoken and remembers which original word each belongs to. An
`Aligner` finds their times in the audio. `job` aligns whole corpora and writes a manifest that `encode` reads.
"""
