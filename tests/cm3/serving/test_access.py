"""Keys, and what a browser may send to a server without any."""

import secrets
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cm3 import CM3
from cm3.serving.access import Keys, read_keys
from cm3.serving.app import make_app
from serving import KEY

KEYED = {"Authorization": f"Bearer {KEY}"}


def test_a_key_file_has_one_key_a_line_and_comments(tmp_path: Path):
    file = tmp_path / "keys.txt"
    text = f"# keys of the laboratory over there\n\n  {KEY}\t\r\n#{KEY}-old\nanother-key-of-the-test\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_keys(file) == [KEY, "another-key-of-the-test"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"# lab\n{KEY} and-what-else-it-is\n", "line 2: the key has a blank inside: one key a line"),
        (f"{KEY}\nsecret\n", "line 2: the key has 6 characters, but needs at least 16"),
        ("schlüssel-des-labors\n", "line 1: the key has characters that a header cannot carry"),
        (b"\xff\xfe" + KEY.encode("utf-16-le"), "this is no text in UTF-8"),
        ("# no key but this comment\n\n", "there are no keys"),
    ],
    ids=str,
)
def test_a_key_file_with_a_bad_line_is_refused_by_its_number(content: str | bytes, message: str, tmp_path: Path):
    file = tmp_path / "keys.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match="keys.txt") as error:
        read_keys(file)
    assert message in str(error.value)
    assert KEY not in str(error.value) and "secret" not in str(error.value).removesuffix(message).replace("secrets", "")


def test_an_application_takes_no_weak_key(tiny: CM3):
    for keys in ([""], ["a-short-key"], [KEY, f"{KEY} x"]):
        with pytest.raises(ValueError, match="API key"):
            make_app(tiny, "tiny", api_keys=keys)
    with pytest.raises(TypeError, match="a list of strings"):
        make_app(tiny, "tiny", api_keys=KEY)


@pytest.mark.parametrize("said", [KEY, KEY[:-1], KEY + "x", "", "x", "ü" * 20, KEY * 1000])
def test_keys_are_compared_in_equal_time(said: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever comes: each key is compared, and the values that are have one length."""
    compared: list[tuple[Any, Any]] = []
    compare = secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: bool(compared.append((a, b))) or compare(a, b))
    keys = Keys(["another-key-of-the-test", KEY, "a-third-and-longer-key-of-the-test"])
    assert keys.accepts(f"Bearer {said}") == (said == KEY)
    assert not keys.accepts(f"Basic {said}")
    assert len(compared) == 6 and {len(one) for pair in compared for one in pair} == {32}


def test_figures_are_behind_the_key_where_there_is_one(tiny: CM3):
    keyed, open_to_all = (TestClient(make_app(tiny, "tiny", api_keys=keys), "http://localhost") for keys in ([KEY], []))
    assert keyed.get("/metrics").status_code == 401
    assert keyed.get("/metrics", headers=KEYED).status_code == 200
    assert open_to_all.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "10.0.0.1", ""]
)
def test_a_server_without_keys_answers_under_names_of_this_machine_only(tiny: CM3, host: str):
    http = TestClient(make_app(tiny, "tiny"), "http://localhost")
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v1/images/generations")):
        answer = http.request(method, path, headers={"Host": host})
        assert answer.status_code == 403 and set(answer.json()) == {"error"}
        assert "under 127.0.0.1 and localhost only" in answer.json()["error"]["message"]
    behind_keys = TestClient(make_app(tiny, "tiny", api_keys=[KEY]), "http://localhost")
    assert behind_keys.get("/v1/models", headers={"Host": host, **KEYED}).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LOCALHOST", "[::1]:8000", "127.0.0.2"])
def test_a_server_without_keys_answers_its_own_pages(tiny: CM3, host: str):
    http = TestClient(make_app(tiny, "tiny"), "http://localhost")
    for origin in ({}, {"Origin": f"http://{host}"}):
        assert http.get("/v1/models", headers={"Host": host, **origin}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "https://localhost.evil.example", "http://localhost:1", "http://[::1"]
)
def test_a_server_without_keys_refuses_pages_from_elsewhere(tiny: CM3, origin: str):
    http = TestClient(make_app(tiny, "tiny"), "http://localhost")
    answer = http.post("/v1/images/generations", json={"prompt": "a cat"}, headers={"Origin": origin})
    assert answer.status_code == 403 and "pages of other sites" in answer.json()["error"]["message"]
