"""Access to the server, limits of request bodies, and checks of recordings."""

import asyncio
import io
import struct
import time

import httpx
import numpy as np
import pytest
import soundfile

from spirit_jax.audio import AudioError, AudioLimits, encode_wav, load_audio
from spirit_jax.serving.limits import Limits
from spirit_jax.serving.security import Access, Guard
from spirit_jax.serving.uploads import Recordings, pcm_segment


async def _echo(scope, receive, send):
    """Answers with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(access: Access, path: str = "/v1/models", method: str = "GET", content=None, **headers) -> httpx.Response:
    """Ask an application behind the guard."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=Guard(_echo, access, upload_bytes=1000))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


def test_the_api_key_is_asked_for():
    access = Access(api_key="secret")
    for path in ("/v1/models", "/metrics", "/v1/generate"):
        for given in (None, "Bearer wrong", "secret", "Bearer \xfc".encode("latin-1")):
            response = ask(access, path, **({} if given is None else {"authorization": given}))
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert ask(access, path, authorization="Bearer secret").status_code == 200
    assert ask(access, "/").status_code == 200
    assert ask(access, "/health").status_code == 200


def test_pages_of_other_sites_are_kept_out():
    """By the Origin header, and by the name they may have resolved to this machine."""
    assert ask(Access(), origin="http://localhost:8000").status_code == 200
    refused = ask(Access(), origin="https://evil.example")
    assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (403, False)
    assert ask(Access(), origin="null").status_code == 403
    assert ask(Access(), host="evil.example").status_code == 403
    assert ask(Access(), host="[::1]:8000").status_code == 200
    assert ask(Access(hosts=None), host="any.example").status_code == 200
    assert ask(Access(), host="[").status_code == 400


def test_listed_sites_may_read_answers():
    access = Access(origins=["https://good.example"], api_key="secret")
    preflight = ask(access, method="OPTIONS", origin="https://good.example")
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://good.example"
    answer = ask(access, origin="https://good.example", authorization="Bearer secret")
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    assert ask(access, method="OPTIONS", origin="https://evil.example").status_code == 403


def test_bodies_are_limited():
    """By the length that the header gives, and by what arrives where it gives none."""
    assert ask(Access(), method="POST", content=b"x" * 1000).text == "1000"
    assert ask(Access(), method="POST", content=b"x" * 1001).status_code == 413

    async def chunks():
        for _ in range(3):
            yield b"x" * 400

    assert ask(Access(), method="POST", content=chunks()).status_code == 413
    assert ask(Access(), **{"content-length": "-1"}).status_code == 400


def test_every_response_has_the_headers_that_browsers_obey():
    for response in (ask(Access(), "/"), ask(Access(), host="evil.example")):
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


def sound(samples: np.ndarray, kind: str, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind)
    return buffer.getvalue()


TONE = (0.3 * np.sin(np.arange(8000) / 20)).astype(np.float32)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF"])
def test_sound_files_are_read(kind):
    assert Recordings(Limits()).decode(sound(TONE, kind)).audio.size == pytest.approx(8000, abs=1200)


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        b"\x80\x04\x95pickle",
        b"/etc/passwd",
        b"http://127.0.0.1/a.wav",
        b"",
    ],
)
def test_nothing_but_sound_files_is_decoded(content):
    with pytest.raises(AudioError, match="is not WAV"):
        Recordings(Limits()).decode(content)


@pytest.mark.parametrize("start", [b"OggS\xff\xff", b"v=0\nftypjp2 ", b"\x1a\x45\xdf\xa3", b"caff"])
def test_a_session_description_that_begins_as_a_sound_file_opens_no_socket(start):
    """FFmpeg takes it for SDP, and once waited 20 s for the packets of the address in it."""
    pytest.importorskip("av")
    description = b"\nv=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 40122 RTP/AVP 0\n"
    begin = time.monotonic()
    with pytest.raises(AudioError, match="cannot be decoded"):
        Recordings(Limits()).decode(start + description)
    assert time.monotonic() - begin < 10


def test_recordings_are_limited():
    limits = Limits(audio_seconds=1, channels=2)
    with pytest.raises(AudioError, match="longer than 1 s"):
        Recordings(limits).decode(sound(np.zeros(16_001, np.float32), "FLAC"))
    with pytest.raises(AudioError, match="3 channels; at most 2"):
        Recordings(limits).decode(sound(np.zeros((8000, 3), np.float32), "WAV"))
    with pytest.raises(AudioError, match="at least 1280"):
        Recordings(limits).decode(encode_wav(TONE[:1000]))
    with pytest.raises(AudioError, match="not base64"):
        Recordings(limits).decode_base64("$$$")
    both = Recordings(limits)
    both.decode(encode_wav(TONE))
    with pytest.raises(AudioError, match=r"longer than 0\.5 s"):  # what the first recording left
        both.decode(encode_wav(np.zeros(8001, np.float32)))
    with pytest.raises(AudioError, match="16001 samples"):
        pcm_segment(b"\0\0" * 16_001, limits)


def test_silence_that_decodes_to_gigabytes_is_refused_early():
    """A FLAC file of silence has about 300 samples a byte. Decoding stops at the limit, whatever the header says."""
    content = bytearray(sound(np.zeros(3_000_000, np.int16), "FLAC"))
    assert len(content) < 20_000
    header = struct.unpack(">Q", content[18:26])[0] & ~((1 << 36) - 1)
    content[18:26] = struct.pack(">Q", header)  # the number of samples: unknown
    with pytest.raises(AudioError, match="longer than 100 s"):
        load_audio(bytes(content), limits=AudioLimits(seconds=100))
