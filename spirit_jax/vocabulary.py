"""Token ids of Spirit LM: the pieces of a text tokenizer, then the modality tokens and the speech units.

With N text pieces, the ids are 0..N-1 for text, N for `[Text]`, N+1 for `[Speech]`, then `[Hu0]`..`[Hu500]` and, for
Spirit LM Expressive, `[Pi0]`..`[Pi63]` and `[St0]`..`[St99]`. With Llama 2's 32000 pieces these are the released ids
(docs/paper.md; docs/formats.md, "Tokenizer"). The ids of units are computed by arithmetic. The string form goes through
the tokenizer and gives the same ids.
"""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import sentencepiece
from jaxtyping import Int32, Integer
from sentencepiece import sentencepiece_model_pb2

from spirit_jax import units as speech_units
from spirit_jax.core.arithmetic import round_up
from spirit_jax.core.checksums import check_seal, write_checksums
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import atomic_directory, decode_text, parse_json, read_bytes, shown
from spirit_jax.units import SpeechUnits

TEXT_TOKEN, SPEECH_TOKEN = "[Text]", "[Speech]"
"""Modality tokens: text, or speech units, follow."""
ASR, TTS = "[ASR]", "[TTS]"
"""Separators of the two halves of a pair: text pieces, unless a tokenizer has tokens for them."""

Variant = Literal["base", "expressive"]
"""Base has HuBERT units; Expressive has pitch and style units too."""
VARIANTS: tuple[Variant, ...] = get_args(Variant)

TOKEN_KINDS = ("text", "hubert", "pitch", "style", "control")
"""The kinds of token ids; `Vocabulary.token_kinds` holds an index into this for each id."""

_STREAMS = {"base": (speech_units.HUBERT,), "expressive": (speech_units.HUBERT, speech_units.PITCH, speech_units.STYLE)}
ROW_MULTIPLE = 128
"""Rows of an embedding are a multiple of this: 32503 -> 32512 and 32667 -> 32768 are the released sizes, and a TPU's
matrix unit is as wide."""
_MAX_GAP = 1000  # ids without a token
_LINE_BYTES = 4192
"""Bytes of a line of training text; SentencePiece drops longer ones."""
_SENTENCEPIECE_FILE, _TOKENIZERS_FILE = "tokenizer.model", "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_OTHER_FILES = (_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")

# protobuf makes the class when the module is imported, which type checkers do not see
_ModelProto: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]


_ADDED_PATTERN = r"\[(?:Text|Speech|(?:Hu|Pi|St)\d+)\]"


class VocabularyError(SpiritError):
    """A tokenizer that cannot be read or does not fit; the message names the file and what was expected."""


class PlainTokenizerError(VocabularyError):
    """A text tokenizer without speech tokens, and no variant was named to extend it to."""


def added_tokens(variant: Variant) -> list[str]:
    """`[Text]`, `[Speech]` and the unit tokens of a variant, in the order of their ids.

    >>> added_tokens("base")[:4]
    ['[Text]', '[Speech]', '[Hu0]', '[Hu1]']
    """
    tokens = [TEXT_TOKEN, SPEECH_TOKEN]
    for stream in _STREAMS[variant]:
        tokens += [f"[{speech_units.NAMES[stream]}{value}]" for value in range(speech_units.SIZES[stream])]
    return tokens


@runtime_checkable
class _TextTokenizer(Protocol):
    """A text tokenizer that knows the added tokens."""

    text_size: int
    """Number of text pieces."""
    bos_id: int
    eos_id: int
    dummy_prefix: list[int]
    """Ids that the tokenizer puts before a leading special token."""
    fingerprint: str
    """sha256 (hex) of everything that decides the ids."""
    specials: re.Pattern[str]
    """Matches the strings that `encode` takes for special tokens."""

    def encode(self, string: str) -> list[int]: ...
    def encode_batch(self, strings: list[str]) -> list[list[int]]: ...
    def decode(self, ids: list[int]) -> str: ...


@contextlib.contextmanager
def _library(name: str) -> Iterator[None]:
    """Turn what the libraries of tokenizers raise on a damaged file into a `VocabularyError`.

    Their exceptions have no common base: protobuf's and Rust's derive from `Exception`, and a panic of Rust does not.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise VocabularyError(f"{name} is damaged, or not a tokenizer ({shown(str(error))})") from error


def _parse_model(content: bytes) -> Any:
    """A SentencePiece model as a protobuf message."""
    with _library(_SENTENCEPIECE_FILE):
        return _ModelProto.FromString(content)


def complete_sentencepiece(model: bytes, variant: Variant) -> Any:
    """A SentencePiece model as a protobuf message, with the tokens of a variant as user-defined pieces at its end.

    Raises:
        VocabularyError: a damaged model.
    """
    proto = _parse_model(model)
    if all(piece.piece != TEXT_TOKEN for piece in proto.pieces):
        for token in added_tokens(variant):
            proto.pieces.add(piece=token, score=0.0, type=_ModelProto.SentencePiece.USER_DEFINED)
        proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto


class _SentencePiece:
    """A tokenizer like Llama 2's, whose added tokens are user-defined pieces at the end of the SentencePiece model."""

    def __init__(self, model: bytes, variant: Variant):
        proto = complete_sentencepiece(model, variant)
        tokens = added_tokens(variant)
        pieces = [piece.piece for piece in proto.pieces]
        self.text_size = pieces.index(TEXT_TOKEN)
        if pieces[self.text_size :] != tokens:
            raise VocabularyError(
                f"the {len(pieces) - self.text_size} pieces from {TEXT_TOKEN} on are not the {len(tokens)} tokens of "
                f"Spirit LM {variant}"
            )
        self.model = proto.SerializeToString(deterministic=True)
        self.fingerprint = hashlib.sha256(self.model).hexdigest()
        self.specials = re.compile(_ADDED_PATTERN)
        with _library(_SENTENCEPIECE_FILE):
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            self.bos_id, self.eos_id = self._processor.bos_id(), self._processor.eos_id()
            # SentencePiece puts its dummy space before a leading special piece: `[Text]` -> `▁ [Text]`
            self.dummy_prefix = self.encode(TEXT_TOKEN)[:-1]
            ids = self.encode("".join(tokens))
        if min(self.bos_id, self.eos_id) < 0:
            raise VocabularyError(f"{_SENTENCEPIECE_FILE} has no pieces that begin and end a document (<s> and </s>)")
        if ids != [*self.dummy_prefix, *range(self.text_size, len(pieces))]:
            raise VocabularyError(f"{_SENTENCEPIECE_FILE} does not read the tokens of Spirit LM as user-defined pieces")

    def encode(self, string: str) -> list[int]:
        return self._processor.encode(string)

    def encode_batch(self, strings: list[str]) -> list[list[int]]:
        return self._processor.encode(strings)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


class _ByteLevelBPE:
    """A tokenizer like Llama 3's (`tokenizer.json`): no dummy space; text and added tokens never share a piece."""

    dummy_prefix: list[int] = []  # noqa: RUF012 - the same for all instances

    def __init__(self, serialized: str, special: dict[str, str | None], variant: Variant):
        try:
            import tokenizers
        except ImportError as error:
            raise VocabularyError(f"{_TOKENIZERS_FILE} needs the package tokenizers: pip install tokenizers") from error
        self._added = added_tokens(variant)
        with _library(_TOKENIZERS_FILE):
            self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
            known = self._tokenizer.token_to_id(TEXT_TOKEN)
            ids = self._tokenizer.get_vocab()
            own = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
            self._tokenizer.encode("the cat")
        self.text_size = max(ids.values(), default=-1) + 1 if known is None else known
        if self.text_size > 2 * len(ids) + _MAX_GAP:  # every id gets a row of the embedding
            raise VocabularyError(f"{_TOKENIZERS_FILE}: an id of {self.text_size - 1} for {len(ids)} tokens")
        self._ids = {token: self.text_size + index for index, token in enumerate(self._added)}
        if known is not None and any(ids.get(token) != index for token, index in self._ids.items()):
            raise VocabularyError(
                f"{_TOKENIZERS_FILE}: the ids from {TEXT_TOKEN} ({known}) on are not those of Spirit LM {variant}'s "
                f"{len(self._added)} tokens"
            )
        self._split = re.compile("(" + "|".join(map(re.escape, self._added)) + ")")
        self.specials = re.compile("|".join([_ADDED_PATTERN, *(re.escape(token) for token in own if len(token) > 1)]))
        self.bos_id = self._special(special.get("bos_token") or "<|begin_of_text|>")
        self.eos_id = self._special(special.get("eos_token") or "<|end_of_text|>")
        self.fingerprint = hashlib.sha256(serialized.encode() + variant.encode()).hexdigest()

    def _special(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise VocabularyError(
                f"{_TOKENIZERS_FILE} has no token {token!r}; name bos_token and eos_token in {_CONFIG_FILE}"
            )
        return index

    def encode(self, string: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(string):
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids += self._tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def encode_batch(self, strings: list[str]) -> list[list[int]]:
        return [self.encode(string) for string in strings]

    def decode(self, ids: list[int]) -> str:
        parts, text = [], []
        for index in [*ids, None]:
            if index is not None and index < self.text_size:
                text.append(index)
                continue
            parts.append(self._tokenizer.decode(text, skip_special_tokens=True))
            text = []
            if index is not None:
                parts.append(self._added[index - self.text_size])
        return "".join(parts)


class Vocabulary:
    """A text tokenizer extended by the tokens of Spirit LM Base or Expressive; `load` reads one, `train` makes one.

    >>> vocabulary = Vocabulary.train(["the cat sat on the mat"] * 20, size=280)
    >>> ids = vocabulary.encode("[Text]the cat [Speech][Hu99][Hu49]")
    >>> ids[-2:] == vocabulary.unit_ids(SpeechUnits.from_string("[Hu99][Hu49]")).tolist()
    True
    >>> vocabulary.decode(ids)
    '[Text]the cat [Speech][Hu99][Hu49]'

    Attributes:
        variant: "base" or "expressive".
        streams: stream codes (`spirit_jax.units`) of the variant.
        text_size: number of text pieces, which is also the id of `[Text]`.
        text_id: id of `[Text]`.
        speech_id: id of `[Speech]`.
        hubert_offset: id of `[Hu0]`.
        pitch_offset: id of `[Pi0]`, None for Base.
        style_offset: id of `[St0]`, None for Base.
        size: number of ids in use.
        padded_size: `size` rounded up to a multiple of 128: rows of the embedding.
        bos_id: id of the begin of a document.
        eos_id: id of the end of a document.
        end_ids: ids at which an answer ends: `eos_id`, and those of `with_ends`.
        prefix: ids that open every document: `<s>`, and the dummy space that SentencePiece puts before `[Text]`.
        token_kinds: int8 [padded_size], an index into `TOKEN_KINDS` for each id.
        specials: pattern that matches the strings that `encode` takes for special tokens.
        fingerprint: sha256 (hex) of everything that decides the ids; vocabularies with equal fingerprints are equal.
        is_plain: whether the files hold a text tokenizer alone, so that the speech tokens are added as they are read.
    """

    def __init__(self, tokenizer: _TextTokenizer, variant: Variant, files: dict[str, bytes], *, is_plain: bool = False):
        self._tokenizer, self._files, self.is_plain = tokenizer, files, is_plain
        self.variant: Variant = variant
        self.text_size = tokenizer.text_size
        self.text_id, self.speech_id = self.text_size, self.text_size + 1
        self.streams = _STREAMS[variant]
        sizes = [speech_units.SIZES[stream] for stream in self.streams]
        starts = self.text_size + 2 + np.concatenate([[0], np.cumsum(sizes)])
        self.size = int(starts[-1])
        self.padded_size = round_up(self.size, ROW_MULTIPLE)
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.end_ids: tuple[int, ...] = (self.eos_id,)
        self.prefix = [self.bos_id, *tokenizer.dummy_prefix]
        self.specials, self.fingerprint = tokenizer.specials, tokenizer.fingerprint
        self._offsets = starts[:-1].astype(np.int32)
        self.hubert_offset = int(starts[0])
        self.pitch_offset, self.style_offset = (int(starts[1]), int(starts[2])) if len(sizes) == 3 else (None, None)
        self.token_kinds = np.full(self.padded_size, TOKEN_KINDS.index("control"), np.int8)
        self.token_kinds[: self.text_size] = TOKEN_KINDS.index("text")
        self.token_kinds[[self.bos_id, self.eos_id]] = TOKEN_KINDS.index("control")
        for stream, start, size in zip(self.streams, starts, sizes, strict=False):
            self.token_kinds[start : start + size] = 1 + stream

    def with_ends(self, ids: Iterable[int]) -> "Vocabulary":
        """A copy whose answers end at further text ids too, such as `<|eot_id|>` of Llama 3 Instruct.

        Like `</s>`, they are control tokens and are left out of decoded strings. Other ids are ignored.
        """
        changed = copy.copy(self)
        changed.end_ids = (
            self.eos_id,
            *sorted({index for index in ids if 0 <= index < self.text_size} - {self.eos_id}),
        )
        changed.token_kinds = self.token_kinds.copy()
        changed.token_kinds[list(changed.end_ids)] = TOKEN_KINDS.index("control")
        return changed

    @classmethod
    def load(cls, directory: str | os.PathLike, variant: Variant | None = None) -> "Vocabulary":
        """Read a Hugging Face tokenizer directory. A plain Llama's tokenizer is extended by the tokens of `variant`.

        Args:
            directory: holds `tokenizer.model` (SentencePiece) or `tokenizer.json` (Llama 3).
            variant: required for a plain Llama tokenizer; by default the variant of the files.

        Raises:
            PlainTokenizerError: a plain tokenizer, and no `variant`.
            VocabularyError: names the directory; there is no tokenizer, it is damaged, or its added tokens are not the
                variant's.
        """
        directory = pathlib.Path(directory)
        check_seal(directory, VocabularyError)
        files = {}
        for name in (_SENTENCEPIECE_FILE, _TOKENIZERS_FILE, *_OTHER_FILES):
            if (directory / name).is_file():
                files[name] = read_bytes(directory / name, VocabularyError)
        if _SENTENCEPIECE_FILE not in files and _TOKENIZERS_FILE not in files:
            raise VocabularyError(f"{directory}: neither {_SENTENCEPIECE_FILE} nor {_TOKENIZERS_FILE} there")
        try:
            return cls._from_files(files, variant)
        except VocabularyError as error:
            raise type(error)(f"{directory}: {error}") from error

    @classmethod
    def _from_files(cls, files: dict[str, bytes], variant: Variant | None) -> "Vocabulary":
        config = _parse_json(files, _CONFIG_FILE) if _CONFIG_FILE in files else {}
        found = _variant_of(files, config)
        if None not in (variant, found) and variant != found:
            raise VocabularyError(f"the tokenizer is Spirit LM {found}'s, asked for was {variant}")
        is_plain = found is None
        variant = found or variant
        if variant is None:
            raise PlainTokenizerError(
                "a tokenizer without speech tokens: say variant='base' or 'expressive' to extend it"
            )
        if _SENTENCEPIECE_FILE in files:
            tokenizer = _SentencePiece(files[_SENTENCEPIECE_FILE], variant)
            _check_added_ids(config, tokenizer.text_size, variant)
        else:
            names = {key: _token_name(config, key) for key in ("bos_token", "eos_token")}
            serialized = decode_text(files[_TOKENIZERS_FILE], _TOKENIZERS_FILE, VocabularyError)
            tokenizer = _ByteLevelBPE(serialized, names, variant)
        return cls(tokenizer, variant, files, is_plain=is_plain)

    @classmethod
    def train(cls, texts: Iterable[str], size: int, variant: Variant = "expressive") -> "Vocabulary":
        """Train a SentencePiece model with Llama 2's settings (BPE, byte fallback, single digits) and extend it.

        The same texts give the same pieces on every machine.

        Args:
            texts: the training text, one document each.
            size: number of text pieces; at least 259 plus the number of different characters of the text.
            variant: which unit tokens to add.

        Raises:
            VocabularyError: the text does not give that many pieces.
        """
        model = io.BytesIO()
        lines = (part for text in texts for line in text.splitlines() for part in _short_lines(line) if part.strip())
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                vocab_size=size,
                model_type="bpe",
                byte_fallback=True,
                split_digits=True,
                character_coverage=0.9999,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                num_threads=1,  # for the same pieces on every machine
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise VocabularyError(f"cannot train {size} text pieces on this text: {reason}") from error
        tokenizer = _SentencePiece(model.getvalue(), variant)
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
        }
        files = {_SENTENCEPIECE_FILE: tokenizer.model, _CONFIG_FILE: json.dumps(config, indent=1).encode()}
        return cls(tokenizer, variant, files)

    def save(self, directory: str | os.PathLike) -> None:
        """Write the tokenizer's files into a new directory, which appears complete or not at all.

        The files of a loaded tokenizer are written unchanged.

        Raises:
            FileExistsError: the directory exists.
        """
        with atomic_directory(directory) as scratch:
            for name, content in self._files.items():
                (scratch / name).write_bytes(content)
            write_checksums(scratch)

    def unit_ids(self, units: SpeechUnits) -> Int32[np.ndarray, " N"]:
        """Ids of speech, deduplicated and merged, int32 [N]. Base leaves pitch and style out."""
        if self.variant == "base":
            units = units.without_expression()
        streams, values = units.merged()
        return self._offsets[streams] + values

    def units_of(self, ids: Sequence[int | np.integer] | Integer[np.ndarray, " N"]) -> SpeechUnits:
        """Aligned units (see `SpeechUnits`) from the ids of units.

        Raises:
            VocabularyError: an id is not a unit's; gives its position.
        """
        ids = np.asarray(ids, np.int64)
        streams = np.searchsorted(self._offsets, ids, side="right") - 1
        other = (ids < self._offsets[0]) | (ids >= self.size)
        if other.any():
            raise VocabularyError(f"id {int(ids[other][0])} at position {int(np.argmax(other))} is not a speech unit")
        return SpeechUnits.from_tokens(streams.astype(np.uint8), (ids - self._offsets[streams]).astype(np.int32))

    def encode_text(self, text: str) -> list[int]:
        """Ids of text that follows a special token: without `<s>`, and without a dummy space before the first word.

        A literal `[Hu3]` or `<|end_of_text|>` in the text stays text: it is encoded in two parts.
        """
        cuts = [0, *(match.start() + 1 for match in self.specials.finditer(text)), len(text)]
        parts = [text[start:end] for start, end in itertools.pairwise(cuts)]
        return [index for part in parts for index in self._tokenizer.encode(TEXT_TOKEN + part)[len(self.prefix) :]]

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """`encode_text` of many texts in one call."""
        if any(self.specials.search(text) for text in texts):
            return [self.encode_text(text) for text in texts]
        return [ids[len(self.prefix) :] for ids in self._tokenizer.encode_batch([TEXT_TOKEN + text for text in texts])]

    def encode(self, string: str) -> list[int]:
        """Ids of a string with or without tokens in brackets, `<s>` first, equal to the released tokenizer's."""
        return [self.bos_id, *self._tokenizer.encode(string)]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The string of ids; `<s>`, `end_ids` and ids that only pad the embedding are left out."""
        return self._tokenizer.decode(
            [int(index) for index in ids if index < self.size and index not in (self.bos_id, *self.end_ids)]
        )


def _short_lines(line: str) -> Iterator[str]:
    """A line in parts that SentencePiece takes: cut at spaces, and within longer words between characters.

    Lone surrogates, which UTF-8 cannot hold, are left out.
    """
    rest = line.encode("utf-8", "ignore")
    while len(rest) > _LINE_BYTES:
        end = rest.rfind(b" ", 1, _LINE_BYTES)
        next_start = end + 1
        if end < 0:
            end = _LINE_BYTES
            while rest[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            next_start = end
        yield rest[:end].decode()
        rest = rest[next_start:]
    yield rest.decode()


def _parse_json(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """The object in a JSON file of a tokenizer."""
    content = parse_json(decode_text(files[name], name, VocabularyError), name, VocabularyError)
    if not isinstance(content, dict):
        raise VocabularyError(f"{name} holds a {type(content).__name__}, an object expected")
    return content


def _token_name(config: Mapping[str, Any], key: str) -> str | None:
    """The text of a token that `tokenizer_config.json` names, None if it names none."""
    value = config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise VocabularyError(f"{_CONFIG_FILE}: {key} is {shown(value)}: the text of a token expected")
    return text


def token_ids(config: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the added tokens that a `tokenizer_config.json` lists.

    Raises:
        VocabularyError: the list is not one of tokens by id.
    """
    entries = config.get("added_tokens_decoder") or {}
    ids: dict[str, int] = {}
    for index, entry in entries.items() if isinstance(entries, dict) else [("", entries)]:
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not re.fullmatch("[0-9]{1,9}", index):
            raise VocabularyError(
                f"{_CONFIG_FILE}: added_tokens_decoder has {shown(index)}: {shown(entry)}, tokens by their ids expected"
            )
        ids[content] = int(index)
    return ids


def _variant_of(files: dict[str, bytes], config: dict[str, Any]) -> Variant | None:
    """The variant whose tokens the files hold, None for a plain text tokenizer."""
    tokens = {*token_ids(config)}
    if _SENTENCEPIECE_FILE in files:
        pieces = [piece.piece for piece in _parse_model(files[_SENTENCEPIECE_FILE]).pieces]
        tokens |= {*pieces[-speech_units.SIZES[0] :], *({TEXT_TOKEN} & set(pieces))}
    else:
        added = _parse_json(files, _TOKENIZERS_FILE).get("added_tokens") or []
        if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
            raise VocabularyError(f"{_TOKENIZERS_FILE}: added_tokens is {shown(added)}: a list of tokens expected")
        tokens |= {entry["content"] for entry in added if isinstance(entry.get("content"), str)}
    if TEXT_TOKEN not in tokens:
        return None
    return "expressive" if "[Pi0]" in tokens else "base"


def _check_added_ids(config: dict[str, Any], text_size: int, variant: Variant) -> None:
    """Check that the ids of added tokens in a Hugging Face config are those that arithmetic gives."""
    expected = {token: text_size + index for index, token in enumerate(added_tokens(variant))}
    for token, index in token_ids(config).items():
        if expected.get(token, index) != index:
            raise VocabularyError(f"{_CONFIG_FILE} gives {token} id {index}, expected {expected[token]}")
