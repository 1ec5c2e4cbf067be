"""The OpenAPI document: it names every route, and random requests by it are never an error of the server."""

import json
from importlib.resources import files
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from mllama_cli.engine.engine import Engine
from mllama_cli.serving.app import create_app
from tests.serving.running import Server

DOCUMENT: dict[str, Any] = json.loads(files("mllama_cli.serving").joinpath("openapi.json").read_text(encoding="utf-8"))
UNDOCUMENTED = {
    "/",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/embed",
    "/api/embeddings",
    "/v1/embeddings",
}
"""The page, and what is refused."""


def test_it_is_served(server: Server) -> None:
    assert httpx.get(f"{server.url}/openapi.json").json() == DOCUMENT


def test_it_has_every_route_and_no_other(sketch: Engine) -> None:
    routes = {
        (route.path.replace("{name:path}", "{model}"), method.lower())
        for route in create_app(sketch).routes
        if isinstance(route, Route) and not route.path.startswith(("/api/blobs", "/mllama/"))  # which is ours alone
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert {(path, method) for path, method in routes if path not in UNDOCUMENTED} == described


def test_its_examples_are_answered(server: Server) -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method, about in methods.items():
            body = None
            if reference := about.get("requestBody", {}).get("$ref"):
                content = DOCUMENT["components"]["requestBodies"][reference.rpartition("/")[2]]["content"]
                body = content["application/json"]["example"]
            elif "requestBody" in about:
                body = about["requestBody"]["content"]["application/json"]["example"]
            url = server.url + path.replace("{model}", "sketch")
            answer = httpx.request(method, url, json=body, timeout=60)
            kind = answer.headers["content-type"].partition(";")[0]
            assert answer.status_code == 200, (path, answer.text)
            assert kind in about["responses"].get("200", {}).get("content", {"application/json": {}})


@pytest.mark.slow
def test_random_requests_by_it_are_never_an_error_of_the_server(server: Server) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs the extra `peers`")
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis.checks import load_all_checks
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    load_all_checks()
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.update(base_url=server.url)
    checks = [schemathesis.checks.not_a_server_error, content_type_conformance, response_schema_conformance]
    checks.append(status_code_conformance)
    for result in schema.get_all_operations():
        operation = result.ok()
        modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
        for mode in modes if operation.body else modes[:1]:

            @seed(17)
            @settings(max_examples=12, deadline=None, database=None, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                if isinstance(case.body, dict):  # answers of any length are allowed, and would take the whole time
                    case.body["max_tokens"] = 3
                    case.body["options"] = {"num_predict": 3} | (
                        case.body["options"] if isinstance(case.body.get("options"), dict) else {}
                    )
                case.call_and_validate(checks=checks, timeout=60)

            ask()
