"""Audio containers: whether a file was cut short, by the sizes in its own headers.

Decoders accept a WAV, AIFF, AU, MP3 or Ogg file that ends early and give the samples that are there. A corpus should
not take the beginning of an utterance for all of it, so these formats are checked here. FLAC decoders notice it.
"""

import struct

_STREAMED = 0x7FFFF000
"""Sizes from here on mean that a program wrote the header before it knew the length."""

_MP3_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III by their index, for MPEG 1 and for MPEG 2 and 2.5."""
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
"""Sample rates by their index, for each version."""


def is_cut_short(content: bytes) -> bool:
    """Whether an audio file ends before the place that its headers give. False for formats that are not checked."""
    if content[:4] in (b"RIFF", b"FORM"):
        return _iff_is_cut(content)
    if content[:4] == b".snd":
        return len(content) >= 12 and _beyond(content, *struct.unpack(">II", content[4:12]))
    if content[:4] == b"OggS":
        return _ogg_is_cut(content)
    if content[:3] == b"ID3" or (len(content) > 1 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2):
        return _mp3_is_cut(content)
    return False


def with_wav_size(content: bytes) -> bytes:
    """A WAV file whose header gives no length, as programs write it to a pipe, with the length filled in."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return content
    data = _iff_chunk(content, "<", b"data")
    (riff_size,) = struct.unpack("<I", content[4:8])
    if data is None or data[1] or riff_size + 8 == len(content):
        return content
    start = data[0]
    length = min(len(content) - start, 0xFFFFFFFF)
    riff = struct.pack("<I", min(len(content) - 8, 0xFFFFFFFF))
    return content[:4] + riff + content[8 : start - 4] + struct.pack("<I", length) + content[start:]


def _beyond(content: bytes, start: int, size: int) -> bool:
    """Whether a file has fewer than `size` bytes from `start` on."""
    return size < _STREAMED and start + size > len(content)


def _iff_chunk(content: bytes, order: str, name: bytes) -> tuple[int, int] | None:
    """Start and size of the chunk of a RIFF or AIFF file that holds the samples."""
    at = 12
    while at + 8 <= len(content):
        (size,) = struct.unpack(f"{order}I", content[at + 4 : at + 8])
        if content[at : at + 4] == name:
            return at + 8, size
        at += 8 + size + size % 2
    return None


def _iff_is_cut(content: bytes) -> bool:
    order, name = ("<", b"data") if content[:4] == b"RIFF" else (">", b"SSND")
    chunk = _iff_chunk(content, order, name)
    return chunk is not None and _beyond(content, *chunk)


def _ogg_is_cut(content: bytes) -> bool:
    """Whether the last page is incomplete or not marked as the end of a stream."""
    page = content.rfind(b"OggS\0")
    segments = content[page + 26] if page + 26 < len(content) else 0
    table = content[page + 27 : page + 27 + segments]
    whole = page + 26 < len(content) and len(table) == segments and page + 27 + segments + sum(table) <= len(content)
    return not whole or not content[page + 5] & 4


def _mp3_is_cut(content: bytes) -> bool:
    """Whether the last frame is incomplete, or frames are missing that the first one counts (its Xing header)."""
    at, end = 0, len(content)
    if content[:3] == b"ID3" and len(content) > 10:
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
        at += 10 if content[5] & 0x10 else 0
    if content[-128:-125] == b"TAG":
        end -= 128
    frames, expected = 0, 0
    while at + 4 <= end:
        length = _mp3_frame(content[at : at + 4])
        if length is None:  # tags of other kinds, or a form that is not known: nothing can be said
            return frames > 0 and frames < expected
        if at + length > end:
            return True
        if not frames and not expected:
            expected = _xing_frames(content[at : at + length])
            frames -= 1 if expected else 0
        frames, at = frames + 1, at + length
    return frames < expected


def _mp3_frame(header: bytes) -> int | None:
    """Bytes of a layer III frame; None if this is not the header of one."""
    if header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    kbits = _MP3_KBITS[version == 3][bitrate]
    return (144_000 if version == 3 else 72_000) * kbits // _MP3_RATES[version][rate] + (header[2] >> 1 & 1)


def _xing_frames(frame: bytes) -> int:
    """Number of frames that follow, as the first frame of most files says; 0 if it does not."""
    at = max(frame[:48].find(b"Xing"), frame[:48].find(b"Info"))
    if at < 0 or len(frame) < at + 12 or not frame[at + 7] & 1:
        return 0
    return struct.unpack(">I", frame[at + 8 : at + 12])[0]
