"""A scripted model for tests: the Responses endpoint that a real ``codex exec`` talks to.

Run it stand-alone; it prints its base URL (``http://127.0.0.1:PORT/v1``) as its first line. It
keeps no state: the steps to play stand in the prompt, one a line, and the number of tool results
that Codex has sent since that prompt tells which step is next::

    model: run CMD              run a shell command (and wait for its end)
    model: plan *A; B; C        set the plan; * marks what is done, the first of the rest is current
    model: patch PATH TEXT      add PATH with TEXT (``\\n`` is a line break)
    model: patch PATH OLD => NEW    replace the line OLD of PATH
    model: patch PATH           delete PATH
    model: say TEXT             say TEXT and end the turn; "Done." where the steps run out
    model: fail STATUS MESSAGE  answer with an HTTP error
    model: limit                answer that the usage limit is hit
    model: drop                 close the connection without an answer
    model: wait SECONDS         delay the step that follows

Since it keeps no state, a request that Codex sends again gets the same fail, limit or drop again.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
USAGE: Json = {
    "input_tokens": 1200,
    "input_tokens_details": {"cached_tokens": 200},
    "output_tokens": 34,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 1234,
}
LIMIT: Json = {
    "type": "usage_limit_reached",
    "message": "The usage limit has been reached",
    "plan_type": "plus",
    "resets_in_seconds": 3600,
}
RUNNING = re.compile(r"session ID (\d+)")  # in the result of a command that has not ended


def text_of(content: Any) -> str:
    """The text of a message's content or of a tool's output, both a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or [])


def next_step(items: list[Json]) -> tuple[float, str, str]:
    """Seconds to wait, name and argument of the step to play after these input items."""
    steps: list[str] = []
    played = 0
    last_output = ""
    for item in items:
        if item.get("role") == "user":
            lines = text_of(item.get("content")).splitlines()
            found = [line[7:].strip() for line in lines if line.startswith("model: ")]
            if found:
                steps, played = found, 0
            last_output = ""
        elif str(item.get("type")).endswith("_call_output"):
            played += str(item.get("call_id")).startswith("step")
            last_output = text_of(item.get("output")).split("\nOutput:")[0]
    running = RUNNING.search(last_output)
    if running:
        return 0.0, "poll", running[1]
    delay = 0.0
    for step in steps:
        name, _, argument = step.partition(" ")
        if name == "wait":
            delay += float(argument)
        elif played:
            played, delay = played - 1, 0.0
        else:
            return delay, name, argument
    return delay, "say", "Done."


def call(name: str, arguments: Json, kind: str = "step") -> Json:
    """A function call item."""
    call_id = f"{kind}_{uuid.uuid4().hex}"
    text = json.dumps(arguments)
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": text}


def plan_call(argument: str) -> Json:
    """The tool call that sets the plan; it needs ``tools.update_plan.enabled = true``."""
    plan: list[Json] = []
    current = "in_progress"
    for part in argument.split(";"):
        step = part.strip()
        if step.startswith("*"):
            plan.append({"step": step[1:].strip(), "status": "completed"})
        else:
            plan.append({"step": step, "status": current})
            current = "pending"
    return call("update_plan", {"plan": plan})


def patch_call(argument: str, tools: set[str]) -> Json:
    """The tool call that edits a file: apply_patch where it is offered, else the shell command."""
    path, _, text = argument.partition(" ")
    old, arrow, new = text.replace("\\n", "\n").partition(" => ")
    if arrow:
        body = f"*** Update File: {path}\n@@\n-{old}\n+{new}\n"
    elif text:
        body = f"*** Add File: {path}\n" + "".join(f"+{line}\n" for line in old.split("\n"))
    else:
        body = f"*** Delete File: {path}\n"
    patch = f"*** Begin Patch\n{body}*** End Patch\n"
    if "apply_patch" not in tools:
        return call("exec_command", {"cmd": f"apply_patch <<'EOF'\n{patch}EOF\n"})
    call_id = f"step_{uuid.uuid4().hex}"
    return {"type": "custom_tool_call", "call_id": call_id, "name": "apply_patch", "input": patch}


def item_for(name: str, argument: str, tools: set[str]) -> Json:
    """The output item that plays a step."""
    if name == "run":
        return call("exec_command", {"cmd": argument, "yield_time_ms": 30000})
    if name == "poll":
        poll: Json = {"session_id": int(argument), "chars": "", "yield_time_ms": 300000}
        return call("write_stdin", poll, "poll")
    if name == "plan":
        return plan_call(argument)
    if name == "patch":
        return patch_call(argument, tools)
    text = argument if name == "say" else f"I do not know the step {name!r}."
    content = [{"type": "output_text", "text": text}]
    message_id = f"msg_{uuid.uuid4().hex}"
    return {"type": "message", "role": "assistant", "id": message_id, "content": content}


class Handler(BaseHTTPRequestHandler):
    """Answers one request; the connection closes after each (HTTP/1.0)."""

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: what Codex printed is what a test looks at."""

    def answer(self, status: int, content_type: str, body: str) -> None:
        """Send a whole response."""
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """The list of models."""
        self.answer(200, "application/json", '{"models":[]}')

    def do_POST(self) -> None:
        """Play the next step."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        delay, name, argument = next_step(request["input"])
        time.sleep(delay)
        if name == "drop":
            return
        if name == "limit":
            self.answer(429, "application/json", json.dumps({"error": LIMIT}))
            return
        if name == "fail":
            status, _, message = argument.partition(" ")
            error = {"message": message, "type": "scripted", "code": None}
            self.answer(int(status), "application/json", json.dumps({"error": error}))
            return
        tools = {str(tool.get("name")) for tool in request.get("tools", [])}
        item = item_for(name, argument, tools)
        response: Json = {"id": f"resp_{uuid.uuid4().hex}"}
        events: list[Json] = [
            {"type": "response.created", "response": response},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": {**response, "usage": USAGE}},
        ]
        lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
        self.answer(200, "text/event-stream", "".join(lines))


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description="A scripted model for the real Codex CLI.")
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
