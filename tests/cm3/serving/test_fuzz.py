"""Any request that the server's OpenAPI allows, and many that it does not: an answer that is told, never a crash."""

from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from cm3 import CM3
from cm3.serving.app import make_app
from serving import LOCAL

HOST = {"Host": "localhost"}
CALM = {"deadline": None, "suppress_health_check": list(HealthCheck)}
PATHS = ("images/generations", "images/edits", "chat/completions")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)
NAMES = "prompt n size seed model messages stream modalities temperature guidance plan variety canvas"
FIELDS = st.sampled_from(NAMES.split())


@pytest.mark.slow
def test_what_the_schema_allows_is_answered_as_it_says(tiny: CM3):
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", make_app(tiny, "tiny"), headers=HOST)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {f"/v1/{path}" for path in PATHS}
    for operation in operations:

        @settings(max_examples=60, **CALM)
        @given(case=operation.as_strategy())
        def answered(case: schemathesis.Case) -> None:
            checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
            case.call_and_validate(checks=checks, headers=HOST)

        answered()


@pytest.fixture(scope="module")
def http(tiny: CM3) -> TestClient:
    return TestClient(make_app(tiny, "tiny"), LOCAL, raise_server_exceptions=False)


@settings(max_examples=150, **CALM)
@given(path=st.sampled_from(PATHS), body=st.dictionaries(FIELDS, JSON, max_size=5) | JSON)
def test_any_json_is_answered(http: TestClient, path: str, body: object):
    answer = http.post(f"/v1/{path}", json=body) if encodes(body) else http.post(f"/v1/{path}", content=b"{nan")
    assert answer.status_code in (200, 400, 404, 422)
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


def encodes(body: object) -> bool:
    """Whether JSON has it: no NaN, no half of a surrogate pair."""
    import json

    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        return False
    return True


@settings(max_examples=150, **CALM)
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300))
def test_any_bytes_are_answered(http: TestClient, path: str, body: bytes):
    answer = http.post(f"/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404, 422) and set(answer.json()) == {"error"}


@settings(max_examples=100, **CALM)
@given(image=st.binary(max_size=200), prompt=st.text(max_size=30))
def test_any_bytes_as_an_image_are_answered(http: TestClient, image: bytes, prompt: str):
    answer = http.post("/v1/images/edits", files={"image": ("a.png", image)}, data={"prompt": prompt})
    assert answer.status_code == 422
