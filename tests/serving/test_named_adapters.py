"""Adapters that requests choose by name, beside the model without one."""

import concurrent.futures

import pytest

from tests.support.servers import NAME, alone, running


@pytest.fixture(scope="module")
def server(lm, voice):
    with running(lm, adapters={"voice": voice}) as server:
        yield server


def test_weights_that_the_adapter_leaves_alone_are_shared(lm, voice):
    assert voice.params["embed_tokens"] is lm.params["embed_tokens"]
    assert voice.params["layers"] is not lm.params["layers"]


def test_requests_of_all_adapters_run_beside_each_other(lm, voice, server):
    """Each answer is the one that its prompt gets from its own model alone; both spellings name the adapter."""
    asked = [(model, words) for words in ("hello", "one two", "a") for model in (None, NAME, "voice", f"{NAME}:voice")]
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3, "output_modality": "text"}

    def text(model, words):
        body = {"model": model, "prompt": f"[Text]{words}", **options}
        answer = server.post("/v1/generate", body).json()
        return answer["model"], "".join(segment.get("text", "") for segment in answer["segments"])

    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda pair: text(*pair), asked))
    expected = {
        (adapted, words): "".join(
            str(segment.content)
            for segment in alone(model, f"[Text]{words}", "text", max_new_tokens=12, temperature=1.0, seed=3)
        )
        for adapted, model in ((False, lm), (True, voice))
        for words in ("hello", "one two", "a")
    }
    assert expected[False, "hello"] != expected[True, "hello"]
    for (model, words), (name, content) in zip(asked, found, strict=True):
        adapted = model not in (None, NAME)
        assert name == (f"{NAME}:voice" if adapted else NAME)
        assert content == expected[adapted, words], (model, words)


def test_openai_paths_choose_the_adapter_and_list_it(server):
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [NAME, f"{NAME}:voice"]
    body = {"prompt": "hello", "max_tokens": 8, "temperature": 0}
    answers = {
        model: server.post("/v1/completions", {"model": model, **body}).json()
        for model in (NAME, "voice", f"{NAME}:voice")
    }
    texts = {model: answer["choices"][0]["text"] for model, answer in answers.items()}
    assert texts[NAME] != texts["voice"] == texts[f"{NAME}:voice"]
    assert answers["voice"]["model"] == f"{NAME}:voice"
    refused = server.post("/v1/completions", {"model": f"{NAME}:nobody", **body})
    assert refused.status_code == 404
    assert f"this server has '{NAME}', '{NAME}:voice'" in refused.json()["error"]["message"]
