"""The document says what the server does; `python3 tests/schema` tries it a thousandfold."""

from __future__ import annotations

from typing import Any

from harness import Valet

from pv_lib.api.routes import TABLE


def faults(schema: dict[str, Any], value: Any, known: dict[str, Any], where: str) -> list[str]:
    """How `value` differs from `schema`: types, names, what is missing, what is too much."""
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    kinds = {str: "string", bool: "boolean", dict: "object", list: "array", type(None): "null"}
    kind = kinds.get(type(value), "number")
    allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if kind == "number" and "integer" in allowed and isinstance(value, int):
        kind = "integer"
    found = [] if kind in allowed else [f"{where}: {kind} is not one of {allowed}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is not one of {schema['enum']}")
    if kind == "array":
        for number, item in enumerate(value):
            found += faults(schema["items"], item, known, f"{where}/{number}")
    if kind == "object":
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{where}: {n} is missing" for n in schema.get("required", ()) if n not in value]
        for name, item in value.items():
            if name in properties:
                found += faults(properties[name], item, known, f"{where}/{name}")
            elif isinstance(more, dict):
                found += faults(more, item, known, f"{where}/{name}")
            elif not more:
                found.append(f"{where}: {name} is not in the schema")
    return found


def test_every_json_answer_fits_its_schema(valet: Valet) -> None:
    first = valet.submit("fake: write new.txt x")["job_id"]
    valet.await_end(first)
    document = valet.get("/api/v1/openapi.json")
    known, responses = (document["components"][name] for name in ("schemas", "responses"))
    tried = 0
    for path, item in document["paths"].items():
        for method in ("get", "post", "delete"):
            if method not in item or path.endswith(("/jobs", "/upload", "/abort")):
                continue
            asked = "HEAD" if path == "/api/v1/events" else method.upper()  # it has no end
            answer = valet.ask(asked, path.replace("{job_id}", first))
            described = item[method]["responses"][str(answer.status)]
            name = described.get("$ref", "").rpartition("/")[2]
            content = (responses[name] if name else described).get("content", {})
            assert answer.headers.get("Content-Type", "").partition(";")[0] in {"", *content}
            if "schema" in content.get("application/json", {}) and not path.endswith(".json"):
                schema = content["application/json"]["schema"]
                assert not faults(schema, answer.json, known, path)
                tried += 1
    assert tried >= 5
    waiting = valet.submit("fake: wait go")
    assert not faults({"$ref": "Receipt"}, waiting, known, "receipt")
    jobs = valet.get("/api/v1/jobs")
    assert len(jobs["jobs"]) == 3 and not faults({"$ref": "Jobs"}, jobs, known, "jobs")
    abort = valet.ask("POST", f"/api/v1/jobs/{waiting['job_id']}/abort").json
    assert not faults({"$ref": "Abort"}, abort, known, "abort")
    problem = valet.post_json("/api/v1/jobs", {"repo": 1}).json
    assert not faults({"$ref": "Problem"}, problem, known, "problem")
    assert faults({"$ref": "Receipt"}, {**waiting, "odd": 1}, known, ""), "a fault is seen"


def test_every_route_is_described_and_every_reference_leads_somewhere(valet: Valet) -> None:
    document = valet.get("/api/v1/openapi.json")
    described = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == {(route.operation.method, route.operation.path) for route in TABLE}

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                _, section, name = node["$ref"].removeprefix("#/").split("/")
                assert name in document["components"][section], node
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(document)
    operations = [op for item in document["paths"].values() for op in item.values()]
    names = [op["operationId"] for op in operations if "operationId" in op]
    assert len(names) == len(set(names)) == len(TABLE)
    assert "security" not in document
