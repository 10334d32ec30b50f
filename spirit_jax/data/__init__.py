"""The way from unit records to training batches. NumPy only: loader processes never start JAX.

| module | job |
|---|---|
| `records` | unit records on disk |
| `sequences`, `word_pieces` | a record becomes documents of token ids, by a recipe |
| `sampling` | which record and which source comes next |
| `source` | a source of the mixture, opened |
| `packing` | documents fill the rows of a batch |
| `streams` | rows of one logical stream, with a state to resume from |
| `loader`, `held_out` | batches for training and for evaluation |
| `config` | configuration of the mixture |
"""
