"""schemathesis against the served OpenAPI document: `tests/schema PROGRAM [--short] [--seed N]`.

PROGRAM is the schemathesis executable, from an environment of its own. All checks, all phases,
once without a token and once with one. Exits 1 on any failure or too few cases.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from harness import REPO, TREE, Valet, program  # noqa: E402

TOKEN = "a token for schemathesis".replace(" ", "-")
WANTED = 5000
EXAMPLES, SHORT_EXAMPLES = 130, 10


def run(options: argparse.Namespace, token: str | None) -> tuple[int, int]:
    """One run over a fresh server: the exit code, and how many cases there were."""
    with tempfile.TemporaryDirectory(prefix="pv-schema-") as name:
        settings = {"PV_MAX_RUNNING": "8"} | ({"PV_API_TOKEN": token} if token else {})
        valet = Valet(Path(name), program(), **settings)
        valet.start()
        try:
            return _run(valet, options, token)
        finally:
            valet.clear()


def _run(valet: Valet, options: argparse.Namespace, token: str | None) -> tuple[int, int]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    for step in ("write new.txt one", "say nothing"):
        path = f"/api/v1/jobs?repo={REPO}&branch=main"
        kind = {"Content-Type": "text/markdown", **headers}
        assert valet.ask("POST", path, f"fake: {step}\n".encode(), kind).status == 201
    examples = SHORT_EXAMPLES if options.short else EXAMPLES
    argv = [options.schemathesis, f"--config-file={HERE / 'schemathesis.toml'}", "run"]
    argv += [f"http://127.0.0.1:{valet.port}/api/v1/openapi.json", f"--max-examples={examples}"]
    argv += ["--checks=all", "--suppress-health-check=all", "--no-color"]
    if options.seed is not None:
        argv.append(f"--seed={options.seed}")
    for header, value in headers.items():
        argv += ["--header", f"{header}: {value}"]
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    done = subprocess.run(argv, cwd=valet.root, env=environ, capture_output=True, text=True)
    found = re.search(r"(\d+) generated", done.stdout)
    if done.returncode:
        print(done.stdout, done.stderr)
    said = valet.processes[-1].said
    if "unexpected" in said:
        print(said)
        return 1, 0
    return done.returncode, int(found[1]) if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/schema", description=__doc__)
    parser.add_argument("schemathesis", help="the schemathesis executable")
    parser.add_argument("--short", action="store_true", help="a few cases, to see that it works")
    parser.add_argument("--seed", type=int, help="the same cases each time")
    options = parser.parse_args()
    subprocess.run([str(TREE / "build.sh")], check=True, stdout=subprocess.DEVNULL)
    failed, total = 0, 0
    for token in (None, TOKEN):
        code, cases = run(options, token)
        failed += code != 0
        total += cases
        how = "with a token" if token else "without a token"
        print(f"{how}: {cases} cases, {'no failure' if not code else 'FAILED'}", flush=True)
    print(f"cases: {total}" + ("" if options.short else f", wanted at least {WANTED}"))
    return 1 if failed or (total < WANTED and not options.short) else 0


if __name__ == "__main__":
    sys.exit(main())
