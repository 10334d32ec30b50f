"""Writes the tokenizer of a language model so that Hugging Face gives the same ids as `vocabulary.Vocabulary`.

`tokenizer.model` holds the tokens of Spirit LM as user-defined pieces, as the released tokenizers do. The slow
`LlamaTokenizer`, which the released code uses, reads it. Fast tokenizers would convert it themselves and lose the dummy
space before a leading `[Text]` (docs/formats.md, "Tokenizer"), so a `tokenizer.json` beside it states the same
segmentation in their terms.
"""

import json
import pathlib
import re
import shutil
from typing import Any

import sentencepiece

from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.core.files import read_bytes, read_json, write_file
from spirit_jax.vocabulary import TEXT_TOKEN, Variant, Vocabulary, added_tokens, complete_sentencepiece, token_ids

MODEL_FILES = ("tokenizer.model", "tokenizer.json")
"""Files of a tokenizer's model, of which a tokenizer has at least one."""

CONFIG_FILE = "tokenizer_config.json"

_ADDED_FILE = "added_tokens.json"
TOKENIZER_FILES = (*MODEL_FILES, CONFIG_FILE, "special_tokens_map.json", _ADDED_FILE)
"""All files of a Hugging Face tokenizer."""

_SPACE = "\u2581"  # SentencePiece writes a space as this character
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a tokenizer's files unchanged into the directory `target`, which need not exist."""
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_tokenizer(source: pathlib.Path, target: pathlib.Path, variant: Variant | None) -> None:
    """Write a tokenizer that holds every token of Spirit LM, for Hugging Face and for `Vocabulary`.

    A plain Llama's tokenizer is extended. One that holds the tokens already keeps its pieces.

    Args:
        source: directory of the tokenizer.
        target: directory to write into; it need not exist.
        variant: the tokens that a plain tokenizer gets.

    Raises:
        VocabularyError: no tokenizer there, or a damaged one.
        ConversionError: the result does not give the ids that `Vocabulary` gives for the source.
    """
    before = Vocabulary.load(source, variant)
    target.mkdir(exist_ok=True)
    if (source / MODEL_FILES[0]).is_file():
        _write_sentencepiece(source, target, before)
    else:
        _write_byte_level(source, target, before)
    after = Vocabulary.load(target)
    sample = "The quick brown fox: 12 jumps, caf\u00e9!\n" + TEXT_TOKEN + "a[Speech][Hu3]"
    if (before.size, before.variant, before.encode(sample)) != (after.size, after.variant, after.encode(sample)):
        raise ConversionError(f"{source}: the extended tokenizer does not give the ids it should")


def other_tokens(source: pathlib.Path, text_size: int) -> list[str]:
    """Added tokens of a plain SentencePiece tokenizer, such as `<pad>`. An extension gives their ids away."""
    if not (source / MODEL_FILES[0]).is_file():
        return []  # the added tokens of a tokenizer.json are among its pieces
    found: dict[str, int] = {}
    if (source / CONFIG_FILE).is_file():
        found |= token_ids(read_json(source / CONFIG_FILE, ConversionError))
    if (source / _ADDED_FILE).is_file():
        added = read_json(source / _ADDED_FILE, ConversionError)
        with reading(source / _ADDED_FILE, "the ids of added tokens"):
            found |= {token: index for token, index in added.items() if isinstance(index, int)}
    return [token for token, index in found.items() if index >= text_size]


def _write_sentencepiece(source: pathlib.Path, target: pathlib.Path, vocabulary: Vocabulary) -> None:
    proto = complete_sentencepiece(read_bytes(source / MODEL_FILES[0], ConversionError), vocabulary.variant)
    write_file(target / MODEL_FILES[0], proto.SerializeToString(deterministic=True))
    if (content := _fast_tokenizer(proto, vocabulary)) is not None:
        write_file(target / MODEL_FILES[1], json.dumps(content, ensure_ascii=False))
    names = [proto.pieces[index].piece for index in (vocabulary.bos_id, vocabulary.eos_id)]
    unknown = next(piece.piece for piece in proto.pieces if piece.type == proto.SentencePiece.UNKNOWN)
    config = {
        # The class that takes tokenizer.json as it is; LlamaTokenizer can still be asked for by name.
        "tokenizer_class": "PreTrainedTokenizerFast" if content else "LlamaTokenizer",
        **dict(zip(("bos_token", "eos_token"), names, strict=True)),
        "unk_token": unknown,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
    }
    write_file(target / CONFIG_FILE, json.dumps(config, indent=1) + "\n")


def _fast_tokenizer(proto: Any, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The content of a `tokenizer.json` that segments like a SentencePiece model, None if it cannot.

    Special pieces are cut out before BPE works on the text between them. `ignore_merges` then takes a part that is a
    piece for that piece, which no merges lead to.
    """
    kind, trainer, normalizer = proto.SentencePiece, proto.trainer_spec, proto.normalizer_spec
    if (
        trainer.model_type != trainer.BPE
        or trainer.treat_whitespace_as_suffix
        or normalizer.precompiled_charsmap
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or any(piece.type == kind.UNUSED for piece in proto.pieces)
    ):
        return None
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    names: dict[int, list[str]] = {}
    for piece in proto.pieces:
        names.setdefault(piece.type, []).append(piece.piece)
    cut_out = "|".join(map(re.escape, sorted(names[kind.USER_DEFINED], key=len, reverse=True)))
    special = [*names.get(kind.UNKNOWN, ()), *names.get(kind.CONTROL, ())]
    dummy = bool(normalizer.add_dummy_prefix)
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if dummy else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if dummy else []
    splits = [_split(pattern) for pattern in (cut_out, _unreachable(proto, names, ids)) if pattern]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **_FLAGS, "special": True} for token in special],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": _opening(proto.pieces[vocabulary.bos_id].piece, vocabulary.bos_id),
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[kind.UNKNOWN][0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": bool(trainer.byte_fallback),
            "ignore_merges": True,
            "vocab": ids,
            "merges": _merges(proto),
        },
    }


def _split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts the matches of a regular expression out of the text."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _opening(bos: str, index: int) -> dict[str, Any]:
    """A post-processor that puts the id of the begin of a document first."""
    token, sequence = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": [token, sequence],
        "pair": [token, sequence, *second],
        "special_tokens": {bos: {"id": bos, "ids": [index], "tokens": [bos]}},
    }


def _merges(proto: Any) -> list[str]:
    """The pairs of pieces that BPE joins, the best first."""
    pieces = [piece for piece in proto.pieces if piece.type == proto.SentencePiece.NORMAL]
    rank = {piece.piece: index for index, piece in enumerate(sorted(pieces, key=lambda piece: -piece.score))}
    return [
        f"{piece[:cut]} {piece[cut:]}"
        for piece in rank
        for cut in sorted(range(1, len(piece)), key=lambda cut: rank.get(piece[:cut], 0))
        if piece[:cut] in rank and piece[cut:] in rank
    ]


def _unreachable(proto: Any, names: dict[int, list[str]], ids: dict[str, int]) -> str:
    """A regular expression that cuts a part of a text which equals a piece that SentencePiece never gives for it.

    Bytes such as `<0x0A>` are such pieces, and some that no order of merges leads to.
    """
    kind = proto.SentencePiece
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    candidates = [*names.get(kind.NORMAL, ()), *names.get(kind.BYTE, ())]
    before = len(processor.encode(TEXT_TOKEN))
    found = processor.encode([TEXT_TOKEN + piece.replace(_SPACE, " ") for piece in candidates])
    patterns = []
    for piece, given in zip(candidates, found, strict=True):
        if given[before:] == [ids[piece]]:
            continue
        parts = [processor.id_to_piece(index) for index in given[before:]]
        if "".join(parts) != piece:  # it has characters without a piece of their own, and becomes bytes
            parts = list(piece)
        for place in range(len(parts) - 1):
            start, part, rest = ("".join(parts[a:b]) for a, b in ((0, place), (place, place + 1), (place + 1, None)))
            patterns.append(rf"(?<=\A{re.escape(start)}){re.escape(part)}(?={re.escape(rest)}\z)")
    return "|".join(patterns)


def _write_byte_level(source: pathlib.Path, target: pathlib.Path, vocabulary: Vocabulary) -> None:
    """Write a tokenizer like Llama 3's, whose added tokens and first id are stated in `tokenizer.json`."""
    import tokenizers  # optional; `vocabulary` has read the source with it

    copy_tokenizer(source, target)
    path = target / MODEL_FILES[1]
    content = read_json(path, ConversionError)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    if vocabulary.is_plain:
        content["added_tokens"] = (content.get("added_tokens") or []) + [
            {"id": vocabulary.text_size + index, "content": token, **_FLAGS}
            for index, token in enumerate(added_tokens(vocabulary.variant))
        ]
    bos = tokenizer.id_to_token(vocabulary.bos_id)
    assert bos is not None, "the vocabulary found its id by its name"
    opens = tokenizer.encode("a").ids[:1] == [vocabulary.bos_id]
    if not opens:
        present = content.get("post_processor")
        opening = _opening(bos, vocabulary.bos_id)
        content["post_processor"] = {"type": "Sequence", "processors": [present, opening]} if present else opening
    if vocabulary.is_plain or not opens:
        write_file(path, json.dumps(content, ensure_ascii=False, indent=1))
    config = read_json(target / CONFIG_FILE, ConversionError) if (target / CONFIG_FILE).is_file() else {}
    wanted = {"tokenizer_class": "PreTrainedTokenizerFast"}
    wanted |= {} if config else {"bos_token": bos, "eos_token": tokenizer.id_to_token(vocabulary.eos_id)}
    if not wanted.items() <= config.items():
        write_file(target / CONFIG_FILE, json.dumps(config | wanted, indent=1) + "\n")
