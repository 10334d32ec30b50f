"""`/v1/generate` and the paths about the server, over HTTP against a server on the loopback address."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
import soundfile

from spirit_jax import Segment, SpiritLM
from spirit_jax.audio import encode_wav
from spirit_jax.inference.answers import answer_text
from spirit_jax.inference.prompts import unit_tokens
from spirit_jax.serving.stop_filter import StopFilter
from spirit_jax.units import UnitError
from tests.support import checkpoints
from tests.support.plain_speech import ToneVocoder
from tests.support.servers import NAME, alone, ids_alone, running

PROMPT = "[Text]hello[Speech]"


def decoded(audio: str) -> np.ndarray:
    """The samples of a WAV file in base64."""
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio)), dtype="float32")
    assert rate == 16_000
    return samples


def samples(events: list[dict]) -> np.ndarray:
    """The samples of a streamed answer."""
    pcm = b"".join(base64.b64decode(event["audio"]) for event in events if event["type"] == "speech")
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32767


def plain(segments: list[Segment]) -> list[tuple]:
    return [(s.kind, s.content if s.kind == "text" else s.tokens) for s in segments]


def answered(response: dict) -> list[tuple]:
    return [(s["kind"], s["text"] if s["kind"] == "text" else s["units"]) for s in response["segments"]]


def test_an_answer_is_that_of_the_python_api(lm, server):
    options = {"max_new_tokens": 30, "temperature": 0.9, "seed": 4}
    response = server.post("/v1/generate", {"prompt": PROMPT, "output_modality": "speech", "voice": 1, **options})
    body = response.json()
    assert response.status_code == 200, body
    (expected,) = lm.generate(PROMPT, "speech", speaker=1, **options)
    assert answered(body) == plain([expected])
    np.testing.assert_allclose(decoded(body["segments"][0]["audio"]), expected.audio, atol=1e-3)
    assert body["usage"]["completion_tokens"] == 30
    assert (body["finish_reason"], body["model"]) == ("length", NAME)


def test_segments_in_segments_out(lm, server):
    """Text, units and a recording in one prompt."""
    audio = (0.3 * np.sin(np.arange(16_000) / 20)).astype(np.float32)
    wav = base64.b64encode(encode_wav(audio)).decode()
    body = {"segments": [{"text": "hello"}, {"units": "[Hu3][Hu7]"}, {"audio": wav}], "max_new_tokens": 12}
    response = server.post("/v1/generate", body).json()
    heard = Segment.speech(base64.b64decode(wav))
    expected = alone(lm, [Segment.text("hello"), Segment.speech("[Hu3][Hu7]"), heard], max_new_tokens=12)
    assert answered(response) == plain(expected)
    assert response["prompt"].startswith("[Text]hello[Speech][Hu3][Hu7][Hu")


def test_a_stream_adds_up_to_the_whole_answer(lm, server):
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 2}
    events = server.events({"prompt": PROMPT, "output_modality": "speech", **options})
    (whole,) = alone(lm, PROMPT, "speech", **options)
    assert [events[0]["type"], events[-1]["type"]] == ["start", "end"]
    assert "".join(event["units"] for event in events[1:-1]) == whole.tokens
    np.testing.assert_allclose(samples(events), whole.audio, atol=1e-3)
    assert events[-1]["usage"]["completion_tokens"] == 60


def test_a_stream_of_both_has_the_tokens_of_the_answer(lm, server):
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 3}
    events = server.events({"prompt": PROMPT, **options})
    string = "".join(event.get("text", event.get("units")) for event in events[1:-1])
    _, ids = ids_alone(lm, PROMPT, **options)
    expected = lm.vocabulary.decode(ids).replace("[Text]", "").replace("[Speech]", "")
    assert string.replace(" ", "") == expected.replace(" ", "")
    assert {event["type"] for event in events} == {"start", "text", "speech", "end"}


def test_audio_comes_before_the_answer_is_complete(server):
    """The first audio arrives while the engine still generates."""
    body = {"prompt": PROMPT, "output_modality": "speech", "max_new_tokens": 120, "stream": True, "temperature": 1.0}
    with httpx.stream("POST", server.url + "/v1/generate", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if '"speech"' in line and '"audio": ""' not in line:
                assert server.service.engine._tickets, "the answer was complete before its first audio"
                break
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_an_answer(lm, server, stream):
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 5}
    (text,) = alone(lm, "[Text]hello", "text", **options)
    stop = text.content[-20:-14]
    body = {"prompt": "[Text]hello", "output_modality": "text", "stop": [stop], **options}
    (expected,) = alone(lm, "[Text]hello", "text", stop=(stop,), **options)
    if stream:
        events = server.events(body)
        found = "".join(event["text"] for event in events[1:-1])
        assert events[-1]["finish_reason"] == "stop"
        assert len(events) > 3
    else:
        response = server.post("/v1/generate", body).json()
        found = response["segments"][0]["text"]
        assert response["finish_reason"] == "stop"
    assert found.strip() == expected.content
    assert stop not in found


def test_nothing_of_a_stop_string_is_handed_out(lm):
    """Whatever arrives together: the ids passed on, and the rest, are the text before the stop string."""
    prompt, ids = ids_alone(lm, "[Text]hello", "text", max_new_tokens=60, temperature=1.0, seed=5)
    text = answer_text(lm.vocabulary, prompt, np.array(ids))
    for start in range(20, 40):
        stop = text[start : start + 6]
        for together in (1, 3, 60):
            passed = StopFilter(lm.vocabulary, prompt, [stop, "nowhere"])
            arrivals = [ids[at : at + together] for at in range(0, len(ids), together)]
            given = [i for part in passed.filter(arrivals) for i in part]
            found = answer_text(lm.vocabulary, prompt, np.array(given)) + passed.rest
            assert (passed.stopped, found) == (True, text[: text.find(stop)])


def test_health_models_and_metrics(server):
    assert server.get("/health").json() == {"status": "ok", "model": NAME}
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["variant"], model["hears"], model["speaks"]) == (NAME, "base", True, True)
    assert server.get(f"/v1/models/{NAME}").json() == model
    server.post("/v1/generate", {"prompt": "[Text]a", "max_new_tokens": 2})
    text = server.get("/metrics").text
    assert 'spirit_http_responses_total{path="/v1/generate",status="200"}' in text
    assert "spirit_slots 2\n" in text
    assert "spirit_time_to_first_token_seconds_count" in text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "give either segments or prompt"),
        ({"prompt": "a", "model": "other"}, 404, "there is no model 'other'"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature must be"),
        ({"prompt": "a", "top_k": 1000, "temperature": 1}, 400, "the steps are compiled for"),
        ({"prompt": "[Pi3]"}, 400, "has no pitch units"),
        ({"prompt": "a" * 5000}, 400, "tokens"),
        ({"prompt": "a" * 50_000}, 400, "50000 characters"),
        ({"prompt": "a", "nonsense": 1}, 400, "nonsense"),
        ({"prompt": "a", "voice": "nobody"}, 400, "nobody"),
        ({"prompt": "\ud800"}, 400, "surrogate"),
        ({"segments": [{"units": "/etc/passwd"}]}, 400, "unit string"),
        ({"segments": [{"audio": base64.b64encode(b"#EXTM3U\nfile:///etc/passwd").decode()}]}, 400, "not WAV"),
    ],
)
def test_a_bad_request_is_one_line_in_openai_form(server, body, status, message):
    response = server.post("/v1/generate", None, content=json.dumps(body), headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == status
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_unit_strings_never_open_files(server):
    """A segment with a path in place of units or audio opens nothing."""
    for segment in ({"audio": "/etc/hostname"}, {"units": "[Hu1]/etc/hostname"}, {"audio": "file:///etc/hostname"}):
        assert server.post("/v1/generate", {"segments": [segment]}).status_code == 400
    assert unit_tokens("[Hu1]") == "[Hu1]"


def test_an_answer_that_cannot_be_spoken_ends_with_an_error_event(server, monkeypatch):
    def fail(*_, **__):
        raise UnitError("none of the units is known")

    monkeypatch.setattr(ToneVocoder, "decode", fail)
    body = {"prompt": PROMPT, "output_modality": "speech", "max_new_tokens": 8}
    last = server.events(body)[-1]
    assert last["type"] == "error"
    assert "cannot be spoken: none of the units" in last["error"]["message"]
    assert server.post("/v1/generate", body).status_code == 500


@pytest.mark.slow
def test_the_networks_of_a_released_checkpoint_hear_and_speak():
    """HuBERT and HiFi-GAN in place of the plain tokenizer: streamed audio adds up to that of the whole answer."""
    real = SpiritLM.from_pretrained(checkpoints.with_speech("small_base"), dtype="float32")
    wav = base64.b64encode(encode_wav((0.3 * np.sin(np.arange(16_000) / 20)).astype(np.float32))).decode()
    body = {"prompt": PROMPT, "output_modality": "speech", "temperature": 1.0, "top_p": 1.0, "seed": 2}
    with running(real) as server:
        heard = server.post("/v1/generate", {"segments": [{"audio": wav}], "max_new_tokens": 4}).json()
        whole = server.post("/v1/generate", body | {"max_new_tokens": 60}).json()
        events = server.events(body | {"max_new_tokens": 60})
    assert heard["prompt"].startswith("[Speech][Hu")
    np.testing.assert_allclose(samples(events), decoded(whole["segments"][0]["audio"]), atol=1e-3)
    assert len(events) > 3
