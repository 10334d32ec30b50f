"""Training of every part of a speech tokenizer, as the command `train_speech` does it.

`job.run` trains the parts of a config one after the other with the loop of the language model. `part.Part` is what it
asks of each.
"""
