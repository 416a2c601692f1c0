"""The service as clients of Black Forest Labs' API see it, and what surrounds it."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from headrace.errors import HeadraceError, RequestError
from served import QUICK, Served, cli, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

SPECIFICATION = Path(__file__).parents[2] / "shared" / "conformance" / "protocols" / "bfl_openapi_2026-04.json"


def picture(size: tuple[int, int] = (64, 64), color: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_picture_is_submitted_polled_and_fetched(served: Served) -> None:
    submitted = served.submit(seed=7, output_format="png")
    assert submitted["polling_url"].startswith(f"{served.url}/v1/get_result?id={submitted['id']}")
    assert (submitted["cost"], submitted["input_mp"], submitted["output_mp"]) == (5.0, 0.0, 0.0)
    task = served.wait(submitted)
    assert task["status"] == "Ready", task
    assert task["id"] == submitted["id"]
    assert task["cost"] == 5.0
    result = task["result"]
    assert result["seed"] == 7
    assert result["prompt"] == QUICK["prompt"]
    assert result["end_time"] - result["start_time"] == pytest.approx(result["duration"])
    served_key, served.key = served.key, ""
    try:  # the link alone opens it
        status, headers, data = served.ask("GET", result["sample"])
        assert served.ask("GET", result["sample"][:-1] + "x")[0] == 403
        assert served.ask("GET", re.sub(r"expires=\d+", "expires=1", result["sample"]))[0] == 403
        assert served.json("GET", submitted["polling_url"])["status"] == "Ready"
        assert served.ask("GET", f"/v1/get_result?id={submitted['id']}&token=no")[0] == 200
        assert served.json("GET", f"/v1/get_result?id={submitted['id']}")["status"] == "Task not found"
    finally:
        served.key = served_key
    assert (status, headers["content-type"]) == (200, "image/png")
    image = Image.open(io.BytesIO(data))
    assert image.size == (64, 64)
    assert "Seed: 7" in image.info["parameters"]
    assert served.json("GET", f"/v1/get_result?id={submitted['id']}")["status"] == "Ready"


def test_the_picture_is_the_librarys_own(served: Served) -> None:
    import headrace

    task = served.wait(served.submit(seed=3, output_format="png"))
    data = served.ask("GET", task["result"]["sample"])[2]
    own = headrace.load("sprite").generate(str(QUICK["prompt"]), seed=3, size=(64, 64), steps=1)
    assert Image.open(io.BytesIO(data)).tobytes() == own.image.tobytes()


def test_answers_are_what_the_published_schemas_say(served: Served) -> None:
    if not SPECIFICATION.exists():
        pytest.skip("the published schemas are not here")
    schemas = json.loads(SPECIFICATION.read_text())["components"]["schemas"]
    submitted = served.submit()
    task = served.wait(submitted)
    missing = served.json("GET", "/v1/get_result?id=nothing")
    for answer, name in ((submitted, "AsyncResponse"), (task, "ResultResponse"), (missing, "ResultResponse")):
        schema = schemas[name]
        assert set(schema["required"]) <= set(answer)
    assert {task["status"], missing["status"]} <= set(schemas["StatusResponse"]["enum"])
    invalid = json.loads(served.ask("POST", "/v1/flux-2-pro", {"prompt": 5})[2])
    assert set(schemas["ValidationError"]["required"]) <= set(invalid["detail"][0])
    ours = served.json("GET", "/openapi.json")
    inputs = {"flux-2-pro": "Flux2Inputs", "flux-2-flex": "Flux2FlexInputs", "flux-2-klein-4b": "Flux2KleinInputs"}
    for model, name in inputs.items():
        reference = ours["paths"][f"/v1/{model}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fields = ours["components"]["schemas"][reference["$ref"].rpartition("/")[2]]["properties"]
        ignored = {"input_image_blob_path", "prompt_upsampling"}
        assert set(schemas[name]["properties"]) - set(fields) <= ignored, model


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"prompt": None}, 422, "prompt"),
        ({"prompt": " "}, 422, "empty"),
        ({"width": 32}, 422, "width"),
        ({"width": 4096, "height": 2048}, 422, "megapixels"),
        ({"steps": 51}, 422, "steps"),
        ({"guidance": 1.0}, 422, "guidance"),
        ({"safety_tolerance": 9}, 422, "safety_tolerance"),
        ({"output_format": "gif"}, 422, "output_format"),
        ({"seed": -1}, 422, "seed"),
        ({"aspect_ratio": "wide"}, 422, "aspect_ratio"),
        ({"input_image": "no picture"}, 422, "input_image"),
        ({"webhook_url": "ftp://a"}, 422, "webhook_url"),
        ({"webhook_url": "x" * 3000}, 422, "webhook_url"),
    ],
)
def test_what_cannot_be_is_refused_in_words(served: Served, fields: dict[str, Any], status: int, words: str) -> None:
    answered, _, data = served.ask("POST", "/v1/flux-2-flex", QUICK | fields)
    body = json.loads(data)
    assert answered == status
    assert words in body["message"]
    assert words in json.dumps(body["detail"])


def test_other_errors_have_detail_and_message(served: Served) -> None:
    for method, target, body, status in (
        ("POST", "/v1/flux-9", QUICK, 404),
        ("GET", "/v1/flux-2-pro", None, 405),
        ("POST", "/v1/flux-2-pro", b"{", 422),
        ("GET", "/results/nothing", None, 422),
    ):
        answered, _, data = served.ask(method, target, body)
        assert answered == status, (target, data)
        assert {"detail", "message"} <= set(json.loads(data))
    too_long = served.ask("POST", "/v1/flux-2-pro", b'{"prompt": "' + b"a" * (65 * 2**20) + b'"}')
    assert too_long[0] == 413


def test_what_is_not_known_is_ignored(served: Served) -> None:
    task = served.wait(served.submit(strange=1, prompt_upsampling=True, disable_pup=True, user="me"))
    assert task["status"] == "Ready"


def test_sizes_are_chosen_and_rounded(served: Served) -> None:
    for fields, size in (
        ({"width": 0, "height": 0}, (128, 128)),
        ({"width": 70, "height": 100}, (64, 96)),
        ({"width": 0, "height": 0, "aspect_ratio": "4:1"}, (256, 64)),
        ({"width": 0, "height": 0, "input_image": picture((80, 64))}, (80, 64)),
    ):
        task = served.wait(served.submit(**fields))
        assert Image.open(io.BytesIO(served.ask("GET", task["result"]["sample"])[2])).size == size, fields


def test_references_are_used_and_counted(served: Served) -> None:
    fields = {"input_image": picture(), "input_image_2": picture(color="blue"), "input_image_10": picture()}
    submitted = served.submit("flux-2-pro", **fields)
    assert submitted["cost"] == 3 + 3 * 1.5
    assert submitted["input_mp"] == 0.01
    assert served.wait(submitted)["status"] == "Ready"
    inputs = served.data / "inputs"
    assert not list(inputs.glob(f"{submitted['id']}*"))


def test_a_forbidden_prompt_is_moderated_and_free(served: Served) -> None:
    submitted = served.submit(prompt="something forbidden")
    assert submitted["cost"] == 0
    task = served.wait(submitted)
    assert task["status"] == "Request Moderated"
    assert task["details"] == {"Moderation Reasons": ["Blocklist"]}
    assert served.wait(served.submit(prompt="something forbidden", safety_tolerance=4))["status"] == "Ready"


@pytest.fixture
def listener() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server that a webhook can call; it fails the first time."""
    calls: list[tuple[dict[str, str], bytes]] = []

    class Called(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(500 if len(calls) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Called)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", calls
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_webhook_is_called_again_until_it_answers(
    served: Served, listener: tuple[str, list[tuple[dict[str, str], bytes]]]
) -> None:
    url, calls = listener
    submitted = served.submit(webhook_url=url, webhook_secret="secret")
    assert submitted["webhook_url"] == url
    assert submitted["status"] == "Pending"
    until = time.monotonic() + 30
    while len(calls) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(calls) == 2
    headers, body = calls[1]
    assert headers["x-webhook-secret"] == "secret"
    assert headers["x-bfl-signature"].startswith("sha256=")
    task = json.loads(body)
    assert (task["id"], task["status"]) == (submitted["id"], "Ready")
    assert served.ask("GET", task["result"]["sample"])[0] == 200


def test_progress_comes_as_events_with_previews(served: Served) -> None:
    submitted = served.submit(steps=12, width=128, height=128)
    status, headers, data = served.ask("GET", f"/v1/jobs/{submitted['id']}/events")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    events = [re.match(r"event: (\w+)\ndata: (.*)", part) for part in data.decode().strip().split("\n\n")]
    found = [(match[1], json.loads(match[2])) for match in events if match]
    assert found[-1][0] == "result"
    assert found[-1][1]["status"] == "Ready"
    previews = [body["preview"] for name, body in found if name == "progress" and body["preview"]]
    assert previews
    image = Image.open(io.BytesIO(base64.b64decode(previews[0].partition(",")[2])))
    assert image.format == "JPEG"
    steps = [body["step"] for name, body in found if name == "progress"]
    assert steps == sorted(steps)


def test_a_job_is_cancelled_while_it_runs(served: Served) -> None:
    submitted = served.submit(steps=50, width=256, height=256)
    until = time.monotonic() + 30
    while served.json("GET", f"/v1/jobs/{submitted['id']}")["step"] == 0 and time.monotonic() < until:
        time.sleep(0.05)
    served.json("POST", f"/v1/jobs/{submitted['id']}/cancel")
    task = served.wait(submitted)
    assert task["status"] == "Error"
    assert "Cancelled" in task["details"]["error"]
    assert served.json("GET", f"/v1/jobs/{submitted['id']}")["step"] < 50


def test_what_is_deleted_is_gone(served: Served) -> None:
    submitted = served.submit()
    task = served.wait(submitted)
    assert served.json("DELETE", f"/v1/jobs/{submitted['id']}") == {"deleted": True}
    assert served.json("GET", submitted["polling_url"])["status"] == "Task not found"
    assert served.ask("GET", task["result"]["sample"])[0] == 404
    assert served.ask("DELETE", f"/v1/jobs/{submitted['id']}")[0] == 404
    assert not list((served.data / "results").glob(f"{submitted['id']}*"))


@pytest.mark.slow
def test_pictures_are_marked(tmp_path: Path) -> None:
    from headrace.provenance import verify

    with serving(data=tmp_path) as served:
        fields = {"width": 256, "height": 256, "input_image": picture(), "output_format": "png"}
        task = served.wait(served.submit(**fields), 300)
        path = tmp_path / "a.png"
        path.write_bytes(served.ask("GET", task["result"]["sample"])[2])
    verdict = verify(path, register=tmp_path / "register.sqlite")
    assert verdict.recipe is not None
    assert verdict.recipe.prompt == QUICK["prompt"]
    assert verdict.signature is not None
    assert verdict.signature.state in ("valid", "trusted")
    assert len(verdict.signature.ingredients) == 1
    assert verdict.matches is not None
    assert [match.entry.name for match in verdict.matches] == [task["id"]]
    assert verdict.matches[0].entry.recipe is None


def test_credits_and_prices_are_told(served: Served) -> None:
    key, data = served.key, ("--data", str(served.data))
    poor = cli("keys", "add", "poor", "--credits", "6", "--model", "flux-2-flex", *data).strip()
    key_id = poor.split("_")[1]
    served.key = poor
    try:
        assert served.json("GET", "/v1/credits") == {"credits": 6.0}
        wanted = {"model": "flux-2-flex", "input_images": [{"width": 9, "height": 9}]}
        priced = served.json("POST", "/v1/pricing", wanted)
        assert (priced["cost"], priced["cost_usd"], priced["output_mp"]) == (10, 0.1, 1.05)
        assert served.ask("POST", "/v1/flux-2-pro", QUICK)[0] == 403
        submitted = served.submit()
        assert served.ask("POST", "/v1/flux-2-flex", QUICK)[0] == 402
        assert served.wait(submitted)["status"] == "Ready"
        assert served.json("GET", "/v1/credits") == {"credits": 1.0}
        assert len(served.json("GET", "/v1/jobs")["jobs"]) == 1
    finally:
        served.key = key
    assert served.ask("GET", f"/v1/jobs/{submitted['id']}")[0] == 404  # of another key
    assert json.loads(cli("credits", "show", key_id, *data, "--json"))["credits"] == 1
    assert cli("credits", "grant", key_id, "2.5", *data) == f"{key_id} has 3.5 credits\n"
    listed = json.loads(cli("jobs", "list", "--key", key_id, "--json", *data))["jobs"]
    assert [(job["id"], job["state"]) for job in listed] == [(submitted["id"], "ready")]
    cli("keys", "revoke", poor, *data)
    assert "revoked" in cli("keys", "list", *data)
    assert served.ask("GET", "/v1/credits", headers={"x-key": poor})[0] == 403
    with pytest.raises(RequestError, match="no unfinished job"):
        cli("jobs", "cancel", submitted["id"], *data)
    with pytest.raises(RequestError, match="no failed or cancelled job"):
        cli("jobs", "retry", submitted["id"], *data)
    cli("jobs", "delete", submitted["id"], *data)
    assert served.ask("GET", submitted["polling_url"])[0] == 200


def test_it_is_watched(served: Served) -> None:
    assert served.json("GET", "/healthz") == {"status": "ok"}
    assert served.json("GET", "/readyz")["workers"] == 1
    text = served.ask("GET", "/metrics")[2].decode()
    assert re.search(r'headrace_jobs\{model="flux-2-flex",state="ready"\} [1-9]', text)
    assert "headrace_stage_seconds_total" in text
    assert re.search(r'headrace_requests_total\{route="/v1/flux-2-flex",status="200"\}', text)
    status, headers, _ = served.ask("GET", "/v1/credits", headers={"x-key": "", "Authorization": ""})
    assert status == 403
    assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])
    assert "access-control-allow-origin" not in served.ask("GET", "/healthz", headers={"Origin": "http://a"})[1]


def test_logs_have_no_secrets_and_no_prompts(served: Served) -> None:
    submitted = served.submit(prompt="a very private matter")
    served.wait(submitted)
    logs = "".join(path.read_text() for path in served.data.glob("log-*"))
    assert submitted["id"] in logs
    token = submitted["polling_url"].partition("token=")[2]
    for secret in (served.key, token, "private matter", "signature="):
        assert secret not in logs
    database = (served.data / "headrace.sqlite").read_bytes()
    assert served.key.rpartition("_")[2].encode() not in database


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "headrace keys add"),
        (("--model", "a b=c"), "NAME=SPEC"),
        (("--model", "a=nothing/here.safetensors"), "nothing/here"),
        (("--database", "mysql://a"), "not known"),
        (("--host", "256.1.1.1"), "headrace keys add"),
    ],
)
def test_a_server_that_cannot_be_does_not_start(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(HeadraceError, match=words):
        cli("serve", "--port", "0", "--data", str(tmp_path), *arguments)
