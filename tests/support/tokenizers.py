"""Text tokenizers without the tokens of Spirit LM, written into a folder. Each returns its number of pieces."""

import tokenizers
from sentencepiece import sentencepiece_model_pb2

from tests.support.goldens import golden


def plain_sentencepiece(folder):
    """A Llama-2 like tokenizer: the pieces of the golden one without the tokens of Spirit LM."""
    # protobuf creates its classes when the module loads, where a type checker does not see them.
    proto = sentencepiece_model_pb2.ModelProto.FromString(  # pyright: ignore[reportAttributeAccessIssue]
        golden("tokenizers/small_base_userdef/tokenizer.model").read_bytes()
    )
    names = [piece.piece for piece in proto.pieces]
    del proto.pieces[names.index("[Text]") :]
    proto.trainer_spec.vocab_size = len(proto.pieces)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return len(proto.pieces)


def plain_byte_level(folder):
    """A Llama-3 like tokenizer."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()
