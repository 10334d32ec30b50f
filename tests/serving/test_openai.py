"""OpenAI's Python client, unchanged, against a server on the loopback address."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest
import soundfile

from spirit_jax import Segment
from spirit_jax.audio import encode_wav
from spirit_jax.serving.openai_schemas import audio_id, units_of_audio_id
from tests.support.servers import NAME, alone

TONE = (0.3 * np.sin(np.arange(16_000) / 20)).astype(np.float32)


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "spirit_jax"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_completions(lm, client):
    (text,) = alone(lm, "[Text]hello", "text", max_new_tokens=20, temperature=1.0, seed=2)
    options = {"model": NAME, "prompt": "hello", "max_tokens": 20, "temperature": 1.0, "seed": 2}
    answer = client.completions.create(**options)
    assert answer.choices[0].text.strip() == text.content
    ended = answer.usage.completion_tokens < 20
    assert answer.choices[0].finish_reason == ("stop" if ended else "length")
    streamed = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in streamed[:-1]).strip() == text.content
    assert streamed[-1].usage == answer.usage


def test_many_prompts_and_answers(lm, client):
    """Each answer to a prompt has a seed of its own, and each is the one that the prompt gets alone."""
    options = {"model": NAME, "max_tokens": 12, "temperature": 1.0}
    answer = client.completions.create(prompt=["hello", "[Text]a"], n=2, seed=5, echo=True, **options)
    expected = [
        (f"{prompt}" + client.completions.create(prompt=prompt, seed=5 + n, **options).choices[0].text)
        for prompt in ("[Text]hello", "[Text]a")
        for n in range(2)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert len(set(expected)) == 4
    assert lm.vocabulary.variant == "base"


def test_units_in_completions(lm, client):
    answer = client.completions.create(
        model=NAME, prompt="[Text]hello[Speech]", max_tokens=9, extra_body={"output_modality": "speech"}
    )
    (expected,) = alone(lm, "[Text]hello[Speech]", "speech", max_new_tokens=9)
    assert answer.choices[0].text == expected.tokens


def test_chat_continues_text_and_audio(lm, client):
    """The parts of all messages are one document."""
    wav = encode_wav(TONE)
    content = [
        {"type": "text", "text": "hello"},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}},
    ]
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": content}]
    answer = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=12)
    expected = alone(
        lm, [Segment.text("be kind"), Segment.text(" hello"), Segment.speech(wav)], "text", max_new_tokens=12
    )
    assert answer.choices[0].message.content.strip() == expected[0].content
    assert answer.choices[0].message.role == "assistant"


def test_chat_answers_in_audio_that_a_later_message_refers_to(lm, client):
    options = {"model": NAME, "modalities": ["audio"], "audio": {"voice": "alloy", "format": "wav"}}
    options |= {"max_completion_tokens": 40, "temperature": 1.0, "seed": 1}
    messages = [{"role": "user", "content": "hello"}]
    audio = client.chat.completions.create(messages=messages, **options).choices[0].message.audio
    (expected,) = alone(lm, [Segment.text("hello")], "speech", max_new_tokens=40, temperature=1.0, seed=1)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio.data)), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(samples, expected.audio, atol=1e-3)
    assert units_of_audio_id(audio.id) == expected.tokens
    messages += [{"role": "assistant", "audio": {"id": audio.id}}, {"role": "user", "content": "and"}]
    answer = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=8)
    document = [Segment.text("hello"), Segment.speech(expected.tokens), Segment.text("and")]
    assert answer.choices[0].message.content.strip() == alone(lm, document, "text", max_new_tokens=8)[0].content


def test_chat_streams_text_and_audio(client):
    options = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "temperature": 1.0, "seed": 3}
    options |= {
        "modalities": ["text", "audio"],
        "audio": {"voice": "1", "format": "pcm16"},
        "max_completion_tokens": 60,
    }
    chunks = list(client.chat.completions.create(**options, stream=True))
    audio = [chunk.choices[0].delta.audio for chunk in chunks if getattr(chunk.choices[0].delta, "audio", None)]
    assert len(audio) > 1
    assert audio[-1].id.startswith("audio_Hu")
    assert any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_speech(lm, client):
    (expected,) = alone(lm, [Segment.text("hello")], "speech", max_new_tokens=40, speaker=1)
    options = {"model": NAME, "voice": "1", "input": "hello", "extra_body": {"max_tokens": 40}}
    for sound in ("flac", "wav", "mp3", "opus", "pcm"):
        content = client.audio.speech.create(response_format=sound, **options).content
        if sound == "pcm":
            assert len(content) == pytest.approx(2 * expected.audio.size * 1.5, abs=64)
            continue
        if sound == "wav":  # a stream, whose length its head does not know
            assert content[:4] == b"RIFF"
            samples = np.frombuffer(content[44:], "<i2").astype(np.float32) / 32767
        else:
            samples, _ = soundfile.read(io.BytesIO(content), dtype="float32")
        if sound in ("flac", "wav"):
            np.testing.assert_allclose(samples, expected.audio, atol=1e-3)
    with pytest.raises(openai.BadRequestError, match="aac cannot be written"):
        client.audio.speech.create(response_format="aac", **options)


def test_transcriptions(lm, client):
    file = ("a.wav", encode_wav(TONE))
    options = {"model": NAME, "extra_body": {"max_tokens": 12}}
    (expected,) = alone(lm, [Segment.speech(encode_wav(TONE))], "text", max_new_tokens=12)
    assert client.audio.transcriptions.create(file=file, **options).text == expected.content
    text = client.audio.transcriptions.create(file=file, response_format="text", **options)
    assert text.strip() == expected.content
    events = list(client.audio.transcriptions.create(file=file, stream=True, **options))
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == expected.content
    with pytest.raises(openai.BadRequestError, match="not WAV"):
        client.audio.transcriptions.create(file=("a.wav", b"hello"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools are not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"response_format": {"type": "json_object"}}, "response_format must be text"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_../../etc/passwd"}}]}, "audio.id is not one"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_served_is_refused(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**({"model": NAME, "messages": [{"role": "user", "content": "a"}]} | options))


def test_ids_of_audio_hold_their_units():
    assert audio_id("[St3][Hu500][Hu1]") == "audio_St3.Hu500.Hu1"
    assert units_of_audio_id("audio_St3.Hu500.Hu1") == "[St3][Hu500][Hu1]"
