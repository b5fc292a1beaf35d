"""The server with a model that plans: plans are sent back, taken, streamed and filtered."""

import base64
import io
import json
from collections.abc import Callable, Generator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cm3 import CM3
from cm3.engine.options import GenerateOptions, about
from cm3.serving.safety import BlockList, Safety
from cm3.tasks.jobs import Jobs
from cm3.tasks.planning import Planning
from cm3.tokens.plan import Plan
from planner import ALONE, BLUE, CAT, DOG, PAIR, SMALL
from serving import asking, client_of, data_url

GENERATIONS, EDITS, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
CALM = {"temperature": 0, "variety": 0}


@pytest.fixture
def http(planning: CM3) -> TestClient:
    return client_of(planning)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of each generation and each answer."""
    seen: list[Any] = []

    def noted(task: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            seen.append(arguments[-1])
            return task(*arguments)

        return noting

    for name in ("generate", "answer"):
        monkeypatch.setattr(Jobs, name, noted(getattr(Jobs, name)))
    return seen


@pytest.fixture
def pair_png(planning: CM3) -> bytes:
    file = io.BytesIO()
    planning.generate("", plan=PAIR, temperature=0.0)[0].save(file, "PNG")
    return file.getvalue()


def pixels(b64: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(b64))).tobytes()


def drawn(model: CM3, plan: str, **options: Any) -> bytes:
    return model.generate("", plan=plan, temperature=0.0, **options)[0].tobytes()


def streamed(http: TestClient, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", GENERATIONS, json={**CALM, "stream": True, **body}) as answer:
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [one["type"].partition(".")[2] for one in events]


def test_a_generated_image_comes_with_its_plan(http: TestClient, planning: CM3):
    data = http.post(GENERATIONS, json={"prompt": "a cat on blue", "n": 2, **CALM}).json()["data"]
    assert [one["revised_prompt"] for one in data] == [BLUE, BLUE]
    assert pixels(data[0]["b64_json"]) == drawn(planning, BLUE)


def test_a_given_plan_is_drawn(http: TestClient, planning: CM3):
    [one] = http.post(GENERATIONS, json={"prompt": "a dog", "plan": ALONE, **CALM}).json()["data"]
    assert (one["revised_prompt"], pixels(one["b64_json"])) == (ALONE, drawn(planning, ALONE))


def test_an_image_without_a_plan_has_no_revised_prompt(http: TestClient, tiny: CM3):
    for client, body in ((http, {"prompt": CAT, "plan": False}), (client_of(tiny), {"prompt": "a cat"})):
        [one] = client.post(GENERATIONS, json=body).json()["data"]
        assert list(one) == ["b64_json"]


def test_variety_and_canvas_reach_the_pipeline(http: TestClient, given: list[Any]):
    body = {"prompt": "a cat", "temperature": 0, "variety": 0.01, "canvas": "small", "size": "64x32"}
    [one] = http.post(GENERATIONS, json=body).json()["data"]
    assert [(options.variety, options.size) for options in given] == [(0.01, "small")]
    assert Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size == (64, 32)
    fields = http.get("/openapi.json").json()["components"]["schemas"]["Generation"]["properties"]
    for name, option in (("plan", "plan"), ("variety", "variety"), ("canvas", "size")):
        assert fields[name]["default"] == getattr(GenerateOptions, option)
        assert fields[name]["description"] == about(GenerateOptions, option).help


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"plan": "secret, secret"}, "plan: no plan, which is like"),
        ({"plan": ""}, "plan.text: String should have at least 1 character"),
        ({"plan": "secret" * 400}, "plan.text: String should have at most 2000"),
        ({"plan": ["secret"]}, "plan.flag: Input should be a valid boolean"),
        ({"prompt": "two at one place"}, "the model wrote no valid plan for this: say it otherwise"),
        ({"variety": -1}, "variety: Input should be greater"),
        ({"canvas": "secret"}, "canvas: Input should be 'usual', 'small' or 'large'"),
    ],
    ids=str,
)
def test_a_mistake_is_told_and_not_repeated(http: TestClient, body: dict[str, Any], message: str):
    answer = http.post(GENERATIONS, json={"prompt": "a cat", **CALM, **body})
    assert answer.status_code == 422 and message in answer.json()["error"]["message"]
    assert "secret" not in answer.text and "two at one place" not in answer.text


def test_a_model_that_does_not_plan_refuses_a_plan(tiny: CM3):
    answer = client_of(tiny).post(GENERATIONS, json={"prompt": "a cat", "plan": CAT})
    assert answer.status_code == 422 and "does not plan" in answer.json()["error"]["message"]


def test_a_coloured_image_is_streamed_once(http: TestClient, planning: CM3):
    partial, completed = streamed(http, prompt="a cat on blue", partial_images=1)
    assert kinds([partial, completed]) == ["partial_image", "completed"]
    assert pixels(partial["b64_json"]) == drawn(planning, CAT)  # half of the work: all rows in its own colours
    assert pixels(completed["b64_json"]) == drawn(planning, BLUE)
    assert partial["revised_prompt"] == completed["revised_prompt"] == BLUE


def test_partial_images_are_sent_in_equal_steps(http: TestClient, planning: CM3):
    *partial, _ = streamed(http, prompt="a cat on blue", partial_images=3)
    assert [one["partial_image_index"] for one in partial] == [0, 1, 2]
    assert pixels(partial[1]["b64_json"]) == drawn(planning, CAT)


def test_coloured_and_plain_images_of_one_prompt_are_streamed(
    http: TestClient, planning: CM3, monkeypatch: pytest.MonkeyPatch
):
    plans = [BLUE, DOG, CAT]

    def written(*_: Any) -> Generator[Any, Any, list[Plan]]:
        yield from ()
        return [Plan.parse(plan) for plan in plans]

    monkeypatch.setattr(Planning, "plans", written)
    events = streamed(http, prompt="a pet", n=3, partial_images=1)
    assert kinds(events) == ["partial_image"] * 3 + ["completed"] * 3
    assert sorted(one["revised_prompt"] for one in events[:3]) == sorted(plans)
    assert [one["revised_prompt"] for one in events[3:]] == plans
    assert [pixels(one["b64_json"]) for one in events[3:]] == [drawn(planning, plan) for plan in plans]


def test_a_small_image_is_streamed_with_its_own_rows(http: TestClient, planning: CM3):
    partial, completed = streamed(http, prompt="a cat", canvas="small", partial_images=1)
    assert kinds([partial, completed]) == ["partial_image", "completed"]
    assert pixels(completed["b64_json"]) == drawn(planning, CAT, size="small")
    sizes = {Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size for one in (partial, completed)}
    assert sizes == {planning.image_tokenizer.size_of(SMALL)[::-1]}


def test_the_best_of_several_is_streamed(http: TestClient, planning: CM3):
    events = streamed(http, prompt="a cat on blue", n=2, best_of=2, partial_images=1)
    assert kinds(events) == ["partial_image"] * 2 + ["completed"] * 2
    assert [pixels(one["b64_json"]) for one in events[2:]] == [drawn(planning, BLUE)] * 2


def test_a_prompt_without_a_valid_plan_ends_a_stream(http: TestClient):
    [error] = streamed(http, prompt="two at one place")
    assert error["type"] == "error" and "no valid plan for this" in error["message"]


def test_a_filter_of_prompts_reads_plans(planning: CM3, pair_png: bytes):
    http = client_of(planning, safety=Safety([BlockList({"brands": ["noto"]})]))
    answers = [
        http.post(GENERATIONS, json={"prompt": "cat", **CALM}),
        http.post(GENERATIONS, json={"prompt": "cat", "plan": CAT, **CALM}),
        http.post(EDITS, data={"prompt": "remove the dog"}, files={"image": pair_png}),
        http.post(EDITS, data={"prompt": "x", "plan": CAT}, files={"image": pair_png}),
        http.post(CHAT, json=asking("cat", modalities=["image"], temperature=0)),
    ]
    for answer in answers:
        assert answer.status_code == 400 and answer.json()["error"]["message"] == "the prompt is refused: brands"
    assert http.post(GENERATIONS, json={"prompt": "a dog", **CALM}).status_code == 200
    [error] = streamed(http, prompt="cat", partial_images=1)
    assert error["type"] == "error" and "refused: brands" in error["message"]


def test_an_edit_comes_with_the_plan_of_its_result(http: TestClient, planning: CM3, pair_png: bytes):
    form = {"prompt": "remove the dog", "n": "2", "plan": ""}
    data = http.post(EDITS, data=form, files={"image": pair_png}).json()["data"]
    assert [one["revised_prompt"] for one in data] == [ALONE, ALONE]
    form = {"prompt": "whatever", "plan": CAT, "seed": "3"}
    [one] = http.post(EDITS, data=form, files={"image": pair_png}).json()["data"]
    expected = planning.edit(pair_png, "whatever", plan=CAT, seed=3)
    assert (one["revised_prompt"], pixels(one["b64_json"])) == (CAT, expected.tobytes())


@pytest.mark.parametrize(("plan", "message"), [(ALONE, "leave out plan or mask"), ("secret, secret", "plan: no plan")])
def test_a_plan_that_an_edit_cannot_follow_is_refused(http: TestClient, pair_png: bytes, plan: str, message: str):
    files = {"image": pair_png, "mask": pair_png}
    answer = http.post(EDITS, data={"prompt": "a dog", "plan": plan}, files=files)
    assert answer.status_code == 422 and message in answer.json()["error"]["message"] and "secret" not in answer.text


def test_inpainting_with_a_model_that_plans_sends_no_plan(http: TestClient, pair_png: bytes):
    mask = io.BytesIO()
    Image.new("RGBA", Image.open(io.BytesIO(pair_png)).size).save(mask, "PNG")
    files = {"image": pair_png, "mask": mask.getvalue()}
    [one] = http.post(EDITS, data={"prompt": "a dog"}, files=files).json()["data"]
    assert list(one) == ["b64_json"]


def test_an_image_in_chat_comes_with_its_plan(http: TestClient, pair_png: bytes):
    asked = {"modalities": ["image"], "temperature": 0, "seed": 3}
    message = http.post(CHAT, json=asking("remove the dog", data_url(pair_png), **asked)).json()["choices"][0][
        "message"
    ]
    assert message["content"] == ALONE and len(message["images"]) == 1
    with http.stream("POST", CHAT, json=asking("a dog", stream=True, **asked)) as answer:
        parts = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == DOG


def test_the_plan_of_an_edit_in_chat_is_no_answer_about_the_image(http: TestClient, given: list[Any], pair_png: bytes):
    url = data_url(pair_png)
    reply = {"role": "assistant", "content": ALONE, "images": [{"type": "image_url", "image_url": {"url": url}}]}
    messages = [*asking("remove the dog", url)["messages"], reply, *asking("How many things are there?")["messages"]]
    answer = http.post(CHAT, json={"messages": messages}).json()["choices"][0]["message"]
    assert answer["content"] == "2" and list(given[-1].history) == []
