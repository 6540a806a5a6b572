"""A stand-in for Codex in the demo: takes Codex's arguments and prints Codex's events.

No AI: it writes one file that quotes the prompt. `demo` copies this file's text into its
temporary folder and runs it as the agent, so it imports nothing of Prompt Valet.
"""

import json
import pathlib
import sys
import time


def say(kind: str, **fields: object) -> None:
    """Print one event, then pause for a moment as a real agent would."""
    print(json.dumps({"type": kind, **fields}), flush=True)
    time.sleep(0.15)


def command(line: str, output: str) -> None:
    """Print the two events of a command that succeeded."""
    item = {"id": line, "type": "command_execution", "command": line}
    say("item.started", item={**item, "aggregated_output": "", "exit_code": None})
    say("item.completed", item={**item, "aggregated_output": output, "exit_code": 0})


def main() -> None:
    """Read the prompt from stdin and write DEMO.md, with the events of a real run."""
    where = pathlib.Path(sys.argv[sys.argv.index("--cd") + 1])
    last_message = pathlib.Path(sys.argv[sys.argv.index("--output-last-message") + 1])
    prompt = sys.stdin.read()
    say("thread.started", thread_id="stand-in")
    say("turn.started")
    todo = [{"text": "Look around", "completed": False}, {"text": "Write DEMO.md", "completed": 0}]
    say("item.started", item={"id": "todo", "type": "todo_list", "items": todo})
    command("ls", "".join(f"{p.name}\n" for p in sorted(where.iterdir()) if p.name[0] != "."))
    quoted = "".join(f"> {line}\n" for line in prompt.splitlines())
    (where / "DEMO.md").write_text(f"# Written by the stand-in agent\n\nIt was asked:\n\n{quoted}")
    change = {"changes": [{"path": "DEMO.md", "kind": "add"}], "status": "completed"}
    say("item.completed", item={"id": "change", "type": "file_change", **change})
    done = [{**step, "completed": True} for step in todo]
    say("item.completed", item={"id": "todo", "type": "todo_list", "items": done})
    text = "I wrote DEMO.md. A real agent would have done what the prompt says."
    last_message.write_text(text)
    say("item.completed", item={"id": "message", "type": "agent_message", "text": text})
    usage = {"input_tokens": len(prompt), "cached_input_tokens": 0, "output_tokens": len(text)}
    say("turn.completed", usage=usage)


if __name__ == "__main__":
    main()
