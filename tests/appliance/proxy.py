"""Behind nginx with TLS, set up as ops/guide.md says: the stream, the token, the Host."""

from __future__ import annotations

import re
import time

from appliance.box import API, Box
from appliance.guides import Guide
from chaos.common import Figures
from harness import TREE

NAME = "box.example.org"
LINES = 20
# Each line tells when it was written.
AGENT = f"""\
#!/bin/sh
for number in $(seq {LINES}); do date +"line $number %s.%N"; sleep 0.25; done
"""
MOST_SECONDS = 0.25  # before the next line is written


def prepare(box: Box, figures: Figures) -> None:
    """nginx from Debian with the guide's file, and a certificate of our own."""
    box.machine.add_packages("nginx-light", "openssl")
    agent = box.machine.path("/usr/local/bin/codex")
    agent.write_text(AGENT)
    agent.chmod(0o755)
    hosts = box.machine.path("/etc/hosts")
    hosts.write_text(f"{hosts.read_text()}127.0.0.1 {NAME}\n")
    box.sh(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout /etc/ssl/box.key "
        f"-out /etc/ssl/box.pem -subj /CN={NAME} -addext subjectAltName=DNS:{NAME} 2>/dev/null"
    )
    conf = Guide(TREE / "ops/guide.md", box, ("nginx",)).text("A proxy with TLS")
    box.machine.path("/etc/nginx/conf.d/prompt-valet.conf").write_text(conf)
    box.install()
    box.clone()
    box.start()
    guide = Guide(TREE / "ops/guide.md", box, ("bash",))
    guide.play("Who can reach it", 0)
    guide.play("Who can reach it", 1)
    guide.play("A proxy with TLS")
    left = guide.left("Who can reach it", "A proxy with TLS")
    figures.none("proxy: blocks of the guide that were not run", left, 1)
    box.run("systemctl", "start", "nginx")


def run(box: Box, figures: Figures) -> None:
    """All of it on one machine."""
    prepare(box, figures)
    token = box.run("cat", "/etc/prompt-valet/token").strip()
    bearer = ("-H", f"Authorization: Bearer {token}")

    def status(*arguments: str, url: str = f"https://{NAME}") -> str:
        curl = ("curl", "-s", "--cacert", "/etc/ssl/box.pem", "-o", "/dev/null")
        return box.run(*curl, "-w", "%{http_code}", *arguments, f"{url}/api/v1/jobs")

    page = ("-H", f"Origin: https://{NAME}", "-H", "Sec-Fetch-Site: same-origin")
    foreign = ("-H", "Origin: https://evil.example", "-H", "Sec-Fetch-Site: cross-site")
    for name, wanted, found in (
        ("with the token", "200", status(*bearer)),
        ("without the token", "401", status()),
        ("with a wrong token", "401", status("-H", "Authorization: Bearer not-the-right-one")),
        ("with a foreign Host", "421", status(*bearer, "-H", "Host: evil.example")),
        ("from a page of its own", "200", status(*bearer, *page)),
        ("from a foreign page", "403", status(*bearer, *foreign)),
        ("without the proxy", "200", status(*bearer, url="http://127.0.0.1:8888")),
    ):
        figures.say(f"behind nginx: {name}", found, good=found == wanted)
    submitted = box.run(
        *("curl", "-s", "--cacert", "/etc/ssl/box.pem", *bearer, "--data-binary", "x"),
        *("-H", "Content-Type: text/markdown"),
        f"https://{NAME}/api/v1/jobs?repo=nova-rey/example&branch=main",
    )
    job_id = re.search(r'"job_id": "(\w+)"', submitted)
    assert job_id, submitted
    stream = f"https://{NAME}/api/v1/jobs/{job_id[1]}/log/stream"
    curl = ("curl", "-sN", "--cacert", "/etc/ssl/box.pem", *bearer, stream)
    late = []
    last = ""
    with box.machine.background(*curl) as process:
        assert process.stdout is not None
        for line in process.stdout:
            written = re.match(r"data: line \d+ ([\d.]+)", line)
            if written:
                late.append(time.time() - float(written[1]))
            last = line.strip() or last
    good = len(late) == LINES and max(late) < MOST_SECONDS and '"state": "succeeded"' in last
    figures.say(
        "behind nginx: lines of the stream", f"{len(late)} of {LINES}, end: {last[:40]}", good=good
    )
    figures.say(
        "behind nginx: line written to line read", f"at most {max(late) * 1000:.0f} ms", good=good
    )
    box.run("systemctl", "stop", API)
    figures.say(
        "behind nginx: while the server is down", status(*bearer), good=status(*bearer) == "502"
    )
