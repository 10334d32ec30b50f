"""A conversation over the WebSocket."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from spirit_jax import Segment
from spirit_jax.serving.security import Access
from tests.support.servers import Server, alone, running

SPOKEN = (0.3 * np.sin(np.arange(16_000) / 20)).astype(np.float32)
PCM = (SPOKEN * 32768).astype("<i2")


def open_socket(server: Server, **options: Any):
    return connect(server.url.replace("http", "ws") + "/v1/stream", max_size=None, **options)


def send(socket, **message: Any) -> None:
    socket.send(json.dumps(message))


def answer(socket) -> tuple[list[dict], np.ndarray]:
    """The events up to the end of an answer, and the samples of its speech."""
    events, pcm = [], b""
    while not events or events[-1]["type"] not in ("end", "error"):
        message = socket.recv(timeout=60)
        if isinstance(message, bytes):
            pcm += message
        else:
            events.append(json.loads(message))
    return events, np.frombuffer(pcm, "<i2").astype(np.float32) / 32767


def test_audio_in_audio_out_and_the_conversation_continues(lm, server):
    with open_socket(server) as socket:
        send(socket, type="start", output_modality="speech", max_new_tokens=40, temperature=1.0, seed=2, voice=1)
        assert json.loads(socket.recv(timeout=60))["type"] == "ready"
        send(socket, type="text", text="hello")
        for at in range(0, PCM.size, 4000):
            socket.send(PCM[at : at + 4000].tobytes())
        send(socket, type="generate")
        events, samples = answer(socket)
        prompt = [Segment.text("hello"), Segment.speech(PCM.astype(np.float32) / 32768)]
        (spoken,) = alone(lm, prompt, "speech", max_new_tokens=40, temperature=1.0, seed=2, speaker=1)
        np.testing.assert_allclose(samples, spoken.audio, atol=1e-3)
        units = spoken.tokens
        assert "".join(event["units"] for event in events if event["type"] == "speech") == units
        assert sum(event["samples"] for event in events if event["type"] == "speech") == samples.size
        # The answer is part of what comes next.
        send(socket, type="text", text="and")
        send(socket, type="generate", output_modality="text", seed=3)
        events, _ = answer(socket)
        assert events[0]["prompt"].endswith(f"{units}[Text]and")


def test_an_answer_can_be_cancelled(server):
    with open_socket(server) as socket:
        send(socket, type="start", output_modality="text", max_new_tokens=128, stop=["nothing like this"])
        send(socket, type="text", text="hello")
        send(socket, type="generate")
        send(socket, type="cancel")
        events, _ = answer(socket)
        assert events[-1]["finish_reason"] in ("cancelled", "length", "stop")
        send(socket, type="clear")
        send(socket, type="text", text="a")
        send(socket, type="generate")
        events, _ = answer(socket)
        assert events[0]["prompt"] == "[Text]a"
    server.wait_until_idle()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("no json", "Invalid JSON"),
        ('{"type": "other"}', "other"),
        ('{"type": "text", "text": "a"}', "the first message"),
        (b"\0\0", "the first message"),
        ('{"type": "start", "temperature": -1}', "temperature must be"),
        ('{"type": "start", "model": "other"}', "there is no model"),
        ("[" * 10_000, "Invalid JSON"),
    ],
)
def test_a_bad_message_is_an_error_event(server, message, error):
    with open_socket(server) as socket:
        socket.send(message)
        event = json.loads(socket.recv(timeout=60))
        assert event["type"] == "error"
        assert error in event["error"]["message"]
        send(socket, type="start")
        assert json.loads(socket.recv(timeout=60))["type"] == "ready"


def test_a_recording_that_is_too_long_closes_the_connection(server):
    with open_socket(server) as socket:
        send(socket, type="start")
        with contextlib.suppress(ConnectionClosed):
            for _ in range(110):
                socket.send(b"\0" * 32_000)
        with pytest.raises(ConnectionClosed):
            _ = [socket.recv(timeout=60) for _ in range(3)]


def test_a_conversation_without_end_closes_the_connection(server):
    """Its text is limited by what a prompt can have, because nothing longer can be continued."""
    most = server.service.most_characters
    with open_socket(server) as socket:
        send(socket, type="start")
        assert json.loads(socket.recv(timeout=60))["type"] == "ready"
        for _ in range(2):
            send(socket, type="text", text="a" * (most // 2 + 1))
        assert f"may have {most} characters" in json.loads(socket.recv(timeout=60))["error"]["message"]
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)


def test_a_bug_ends_the_answer_with_an_error_event(server, monkeypatch):
    """The client would otherwise wait for the end of the answer for ever."""

    def fail(job):
        raise ZeroDivisionError

    monkeypatch.setattr(server.service, "_answer", fail)
    with open_socket(server) as socket:
        send(socket, type="start")
        send(socket, type="text", text="hello")
        send(socket, type="generate")
        events, _ = answer(socket)
    assert "internal error" in events[-1]["error"]["message"]


def test_the_key_is_asked_for_and_other_sites_are_kept_out(lm):
    with running(lm, access=Access(api_key="secret")) as server:
        with open_socket(server) as socket:
            send(socket, type="start", api_key="wrong")
            assert json.loads(socket.recv(timeout=60))["error"]["code"] == "invalid_api_key"
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=60)
        for options in ({"additional_headers": {"Authorization": "Bearer secret"}}, {}):
            with open_socket(server, **options) as socket:
                send(socket, type="start", **({} if options else {"api_key": "secret"}))
                assert json.loads(socket.recv(timeout=60))["type"] == "ready"
        with pytest.raises(InvalidStatus), open_socket(server, origin="https://evil.example"):
            pass
