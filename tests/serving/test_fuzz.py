"""Every path under requests made from its own schema, and from broken ones: no answer is a server error."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error


@pytest.fixture(scope="module")
def schema(server):
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


PATHS = [
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/generate",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
]


def test_every_path_is_fuzzed(server):
    assert sorted(server.get("/openapi.json").json()["paths"]) == sorted(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_server_error(schema, path):
    (operation,) = [item.ok() for item in schema.include(path=path).get_all_operations()]

    @hypothesis.settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy())
    def ask(case) -> None:
        case.call_and_validate(checks=[not_a_server_error], timeout=60)

    ask()
