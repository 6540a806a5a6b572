"""A work tree for every job, and its change as a branch: real git, real repositories, traps."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import REPO, Valet, git, make_repository, until

AUTHOR = "Prompt Valet <prompt-valet@localhost>"


def end(valet: Valet, text: str, **fields: object) -> dict[str, Any]:
    return valet.await_end(valet.submit(text, **fields)["job_id"])


def no_trace_left(valet: Valet) -> bool:
    """No work tree, nothing that git knows of one, no lock file."""
    admin = valet.repo / ".git" / "worktrees"
    trees = list((valet.root / "work").iterdir()) + (
        list(admin.iterdir()) if admin.exists() else []
    )
    return not trees and not list((valet.repo / ".git").rglob("*.lock"))


def test_eight_at_once_in_one_repository(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="8")
    (valet.repo / "mine.txt").write_text("the operator's own, not committed\n")
    head = git(valet.repo, "rev-parse", "HEAD")
    before = git(valet.repo, "status", "--porcelain")
    valet.start()
    steps = "fake: wait go\nfake: write same.txt number {n}"
    ids = [valet.submit(steps.format(n=n), filename=f"job {n}.md")["job_id"] for n in range(8)]
    for job_id in ids:
        valet.await_state(job_id, "running")
    (valet.repo / "go").touch()
    records = [valet.await_end(job_id) for job_id in ids]
    (valet.repo / "go").unlink()
    assert len({record["result"]["branch"] for record in records}) == 8
    for number, record in enumerate(records):
        result = record["result"]
        assert result["branch"].startswith(f"codex/job-{number}-")
        assert valet.show(record, "same.txt") == f"number {number}"
        assert git(valet.repo, "rev-parse", f"{result['commit']}^") == head
        counts = (result["files_changed"], result["insertions"], result["deletions"])
        assert counts == (1, 1, 0)
        names = git(valet.repo, "show", "--format=", "--name-only", result["commit"])
        assert names == "same.txt\n"
    assert git(valet.repo, "rev-parse", "HEAD") == head
    assert git(valet.repo, "status", "--porcelain") == before
    assert git(valet.repo, "fsck", "--full", "--strict") == ""
    assert no_trace_left(valet)


def test_the_commit_holds_exactly_what_the_agent_left(valet: Valet) -> None:
    for name in ("keep", "change", "drop", "old name", "tool"):
        (valet.repo / name).write_text(f"{name}\n" * 20)
    (valet.repo / ".gitignore").write_text("*.log\n")
    git(valet.repo, "add", "--all")
    git(valet.repo, "commit", "--quiet", "--message", "files")
    steps = """# Tidy up
fake: sh echo more >> change; rm drop; mv 'old name' 'new name'; chmod +x tool
fake: sh mkdir deep; echo new > deep/file; echo noise > debug.log; ln -s keep link
fake: say I tidied up.
"""
    record = end(valet, steps, filename="Tidy Up!.md")
    assert (record["state"], record["reason"]) == ("succeeded", "completed")
    show = ("show", "--format=", "--name-status", record["result"]["commit"])
    assert sorted(line.split("\t")[0] for line in git(valet.repo, *show).splitlines()) == [
        *("A", "A", "D", "M", "M", "R100"),
    ]
    assert git(valet.repo, "ls-tree", record["result"]["commit"], "tool").startswith("100755")
    message = git(
        valet.repo, "log", "-1", "--format=%an <%ae>|%cn <%ce>%n%B", record["result"]["branch"]
    )
    assert message.startswith(f"{AUTHOR}|{AUTHOR}\nTidy up\n\nI tidied up.\n\n")
    trailers = ("log", "-1", "--format=%(trailers:key=Prompt-Valet-Job,valueonly)")
    assert git(valet.repo, *trailers, record["result"]["branch"]).strip() == record["job_id"]


def test_the_diff_is_what_git_show_says(valet: Valet) -> None:
    record = end(valet, "fake: write new.txt hällo\nfake: sh echo more >> README.md")
    answer = valet.ask("GET", f"/api/v1/jobs/{record['job_id']}/diff")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/x-diff")
    shown = git(valet.repo, "show", "--format=", record["result"]["commit"])
    assert answer.body.decode() == shown != ""
    unchanged = end(valet, "fake: say nothing to do")
    assert (unchanged["state"], unchanged["reason"]) == ("succeeded", "no_changes")
    assert valet.ask("GET", f"/api/v1/jobs/{unchanged['job_id']}/diff").status == 404
    assert unchanged["result"]["branch"] is None and unchanged["result"]["commit"] is None
    assert git(valet.repo, "branch", "--list", "codex/*").split() == [record["result"]["branch"]]
    assert no_trace_left(valet)


def test_the_author_is_the_one_that_was_named(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_GIT_AUTHOR="Böx in the Corner <box@example.org>")
    valet.start()
    record = end(valet, "fake: write x y")
    names = git(valet.repo, "log", "-1", "--format=%an <%ae>|%cn <%ce>", record["result"]["branch"])
    assert names == "|".join(["Böx in the Corner <box@example.org>"] * 2) + "\n"


def test_commits_the_agent_made_are_kept(valet: Valet) -> None:
    commit = "git -c user.name=A -c user.email=a@b commit -qam"
    steps = f"fake: sh echo one >> README.md; {commit} one\nfake: write two.txt two"
    both = end(valet, steps)
    log = git(valet.repo, "log", "--format=%an", f"main..{both['result']['branch']}").split("\n")
    assert log[:2] == ["Prompt Valet", "A"] and both["result"]["files_changed"] == 2
    alone = end(valet, f"fake: sh echo one >> README.md; {commit} one")
    assert git(valet.repo, "log", "-1", "--format=%s", alone["result"]["branch"]) == "one\n"
    elsewhere = end(valet, f"fake: sh git switch -qc mine; echo x >> README.md; {commit} x")
    assert "x\n" in valet.show(elsewhere, "README.md")


def test_work_of_a_failed_and_of_an_aborted_job_is_kept(valet: Valet) -> None:
    failed = end(valet, "fake: write half.txt half\nfake: exit 3")
    assert (failed["state"], failed["result"]["partial"]) == ("failed", True)
    assert valet.show(failed, "half.txt") == "half"
    job_id = valet.submit("fake: write half.txt half\nfake: say up\nfake: wait never")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    valet.ask("POST", f"/api/v1/jobs/{job_id}/abort")
    aborted = valet.await_end(job_id)
    assert (aborted["state"], aborted["result"]["partial"]) == ("aborted", True)
    assert valet.show(aborted, "half.txt") == "half"
    nothing = end(valet, "fake: exit 3")
    assert nothing["result"]["branch"] is None and nothing["reason"] == "exit_code"
    assert no_trace_left(valet)


def test_a_folder_without_git_is_worked_in_itself(valet: Valet) -> None:
    plain = valet.root / "repos" / "nova-rey" / "plain"
    plain.mkdir()
    record = end(valet, "fake: write new.txt text", repo="plain")
    assert (record["state"], record["reason"]) == ("succeeded", "completed")
    assert (plain / "new.txt").read_text() == "text"
    assert record["result"]["branch"] is None and "no git" in record["result"]["notes"][0]


@pytest.fixture
def origin(make_valet: Callable[..., Valet]) -> Callable[..., tuple[Valet, Path]]:
    """A valet whose repository has a bare origin."""

    def make(**settings: str) -> tuple[Valet, Path]:
        valet = make_valet(**settings)
        bare = valet.root / "origin.git"
        git(valet.root, "clone", "--quiet", "--bare", str(valet.repo), str(bare))
        git(valet.repo, "remote", "add", "origin", str(bare))
        valet.start()
        return valet, bare

    return make


def advance(valet: Valet, bare: Path, text: str) -> str:
    """A new commit on origin's main, made by somebody else; its id."""
    other = valet.root / f"other-{text}"
    git(valet.root, "clone", "--quiet", str(bare), str(other))
    (other / text).write_text(text)
    git(other, "add", "--all")
    git(other, "commit", "--quiet", "--message", text)
    git(other, "push", "--quiet", "origin", "main")
    return git(other, "rev-parse", "HEAD").strip()


def test_the_newest_head_is_fetched_and_a_retry_fetches_again(
    origin: Callable[..., tuple[Valet, Path]],
) -> None:
    valet, bare = origin()
    newest = advance(valet, bare, "first")
    record = end(valet, "fake: write new.txt x")
    assert record["result"]["base"] == newest
    newest = advance(valet, bare, "second")
    again = valet.ask("POST", f"/api/v1/jobs/{record['job_id']}/retry").json["job_id"]
    assert valet.await_end(again)["result"]["base"] == newest
    (valet.repo / "local.txt").write_text("x")  # the operator's own commit, on top of origin's
    git(valet.repo, "pull", "--quiet", "origin", "main")
    git(valet.repo, "add", "--all")
    git(valet.repo, "commit", "--quiet", "--message", "local")
    ahead = git(valet.repo, "rev-parse", "HEAD").strip()
    assert end(valet, "fake: write new.txt y")["result"]["base"] == ahead
    shutil.move(bare, valet.root / "gone.git")
    record = end(valet, "fake: write new.txt z")
    assert record["state"] == "succeeded" and record["result"]["base"] == ahead
    assert "origin could not be fetched" in record["result"]["notes"][0]


def test_push_and_pull_request(origin: Callable[..., tuple[Valet, Path]], tmp_path: Path) -> None:
    gh = tmp_path / "gh"
    gh.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > {tmp_path}/called\n'
        "echo Creating pull request >&2\necho https://forge.example/pull/7\n"
    )
    gh.chmod(0o755)
    valet, bare = origin(PV_PUBLISH="pr", PV_PR_COMMAND=str(gh))
    record = end(valet, "# Say hi\nfake: write new.txt x\nfake: say Done; see new.txt.")
    result = record["result"]
    assert record["state"] == "succeeded" and "publish_error" not in result, record
    assert git(bare, "rev-parse", result["branch"]).strip() == result["commit"]
    assert result["pull_request"] == "https://forge.example/pull/7" and result["pushed"]
    assert (tmp_path / "called").read_text().split("\n") == [
        *(str(valet.repo), "pr", "create", "--head", result["branch"], "--base", "main"),
        *("--title", "Say hi", "--body", "Done; see new.txt.", ""),
        *(f"Prompt Valet job {record['job_id']}", ""),
    ]
    partial = end(valet, "fake: write new.txt x\nfake: exit 3")["result"]
    assert partial["partial"] and partial["branch"] not in git(bare, "branch")


def test_a_forge_that_is_down_costs_nothing(origin: Callable[..., tuple[Valet, Path]]) -> None:
    valet, bare = origin(PV_PUBLISH="push")
    shutil.move(bare, valet.root / "gone.git")
    git(valet.repo, "remote", "set-url", "origin", "http://somebody:secret@127.0.0.1:9/x.git")
    record = end(valet, "fake: write new.txt x")
    assert (record["state"], record["reason"]) == ("succeeded", "completed")
    assert "could not be pushed to http://127.0.0.1:9/x.git: " in record["result"]["publish_error"]
    assert valet.show(record, "new.txt") == "x"
    everything = [p.read_bytes() for p in valet.runs.rglob("*") if p.is_file()]
    assert not any(b"secret" in data for data in everything)
    assert "secret" not in valet.processes[-1].said


def test_a_pull_request_that_fails_or_is_there_already(
    origin: Callable[..., tuple[Valet, Path]], tmp_path: Path
) -> None:
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/sh\necho "GraphQL: no permission" >&2\nexit 1\n')
    gh.chmod(0o755)
    valet, _ = origin(PV_PUBLISH="pr", PV_PR_COMMAND=str(gh))
    record = end(valet, "fake: write new.txt x")
    assert "no permission" in record["result"]["publish_error"] and record["result"]["pushed"]
    gh.write_text(
        '#!/bin/sh\necho "a pull request already exists:\nhttps://f/pull/3" >&2\nexit 1\n'
    )
    record = end(valet, "fake: write new.txt x")
    assert record["result"]["pull_request"] == "https://f/pull/3"


def test_an_abort_ends_what_needs_the_network(origin: Callable[..., tuple[Valet, Path]]) -> None:
    valet, bare = origin(PV_PUBLISH="push")
    hook = bare / "hooks" / "pre-receive"
    hook.write_text(f"#!/bin/sh\ntouch {valet.root}/pushing\nsleep 100\n")
    hook.chmod(0o755)
    job_id = valet.submit("fake: write new.txt x")["job_id"]
    until((valet.root / "pushing").exists, "the push")
    assert valet.job(job_id)["phase"] == "publishing"
    assert valet.ask("POST", f"/api/v1/jobs/{job_id}/abort").status == 200
    record = valet.await_end(job_id)
    assert record["state"] == "succeeded" and "abort" in record["result"]["publish_error"]


def test_a_missing_repository_is_cloned_where_that_is_wanted(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    valet.start()
    job = {"repo": "nova-rey/fresh", "branch": "main", "markdown_text": "fake: write new.txt x"}
    answer = valet.post_json("/api/v1/jobs", job)
    assert answer.status == 404 and "clone it there, or set PV_GIT_CLONE_URL" in answer.detail
    valet.processes[-1].stop()
    git(
        valet.root,
        "clone",
        "--quiet",
        "--bare",
        str(valet.repo),
        f"{valet.root}/far/nova-rey/fresh.git",
    )
    valet.environ["PV_GIT_CLONE_URL"] = f"file://{valet.root}/far/{{owner}}/{{repo}}.git"
    valet.start()
    record = valet.await_end(valet.post_json("/api/v1/jobs", job).json["job_id"])
    fresh = valet.root / "repos" / "nova-rey" / "fresh"
    assert record["state"] == "succeeded" and git(fresh, "status", "--porcelain") == ""
    assert git(fresh, "show", f"{record['result']['branch']}:new.txt") == "x"
    record = valet.await_end(valet.post_json("/api/v1/jobs", {**job, "repo": "a/b"}).json["job_id"])
    assert (record["state"], record["reason"]) == ("failed", "workspace_failed")
    assert "could not be cloned" in record["error"]
    record = end(valet, "fake: say x", repo="nova-rey/fresh2", branch="main")
    assert not list((valet.root / "repos").glob("*/.pv-*"))


def trap(path: Path, proof: Path) -> str:
    path.write_text(f'#!/bin/sh\necho "$0" >> {proof}\ncat\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def trapped(origin: Callable[..., tuple[Valet, Path]]) -> Iterator[tuple[Valet, Path]]:
    """A repository that would run a program on every occasion, each leaving its name."""
    valet, _ = origin(PV_PUBLISH="push")
    proof, place = valet.root / "proof", valet.root / "traps"
    place.mkdir()
    hooks = valet.repo / ".git" / "hooks"
    shutil.rmtree(hooks, ignore_errors=True)
    hooks.mkdir()
    names = "post-checkout pre-commit prepare-commit-msg commit-msg post-commit pre-push"
    for name in (
        *names.split(),
        "reference-transaction",
        "post-index-change",
        "fsmonitor-watchman",
    ):
        trap(hooks / name, proof)
    program = trap(place / "program", proof)
    keys = "core.fsmonitor core.sshCommand core.askPass core.gitProxy core.alternateRefsCommand"
    keys += " diff.external diff.evil.command diff.evil.textconv filter.evil.clean"
    keys += " filter.evil.smudge filter.evil.process credential.helper gpg.program"
    keys += " remote.origin.uploadpack remote.origin.receivepack core.editor core.pager"
    for key in keys.split():
        git(valet.repo, "config", key, program)
    for key in ("commit.gpgSign", "filter.evil.required"):
        git(valet.repo, "config", key, "true")
    git(valet.repo, "config", "core.hooksPath", str(hooks))
    blob = "README.md filter=evil diff=evil\n*.txt filter=evil diff=evil\n"
    (valet.repo / ".git" / "info").mkdir(exist_ok=True)
    (valet.repo / ".git" / "info" / "attributes").write_text(blob)
    yield valet, proof
    assert not proof.exists(), proof.read_text()


def test_nothing_that_a_repository_names_is_run(trapped: tuple[Valet, Path]) -> None:
    valet, _ = trapped
    steps = "fake: write .gitattributes * filter=evil diff=evil\nfake: write new.txt x"
    record = end(valet, steps + "\nfake: sh echo more >> README.md")
    assert (record["state"], record["reason"]) == ("succeeded", "completed"), record
    assert record["result"]["pushed"] and record["result"]["files_changed"] == 3, record["result"]


@pytest.mark.parametrize("address", ["ext::touch {proof}", "ssh://nobody@127.0.0.1:9/x.git"])
def test_an_evil_address_of_the_repository_is_not_run(
    trapped: tuple[Valet, Path], address: str
) -> None:
    valet, proof = trapped
    git(valet.repo, "remote", "set-url", "origin", address.format(proof=proof))
    record = end(valet, "fake: write new.txt x")
    assert record["state"] == "succeeded" and "publish_error" in record["result"]


def test_a_repository_inside_the_work_tree_is_only_files(trapped: tuple[Valet, Path]) -> None:
    valet, proof = trapped
    steps = f"""fake: sh git init -q inner && cd inner && echo hi > file && git add file
fake: sh cd inner && git -c user.name=A -c user.email=a@b -c core.hooksPath=/ commit -qm x
fake: sh git -C inner config core.fsmonitor 'touch {proof}; false'
fake: sh git init -q empty; echo hi > empty/file"""
    record = end(valet, steps)
    assert valet.show(record, "inner/file") == valet.show(record, "empty/file") == "hi\n"
    assert "inner was a repository" in str(record["result"]["notes"])


def test_an_agent_that_destroys_its_work_tree(valet: Valet) -> None:
    steps = (
        "fake: sh echo x > x; chmod 000 x; mkdir -p a/b; touch a/b/c; chmod 000 a/b; chmod 500 a"
    )
    closed = end(valet, steps)
    assert closed["state"] == "succeeded", closed
    gone = end(valet, 'fake: sh rm -rf "$PWD"')
    assert (gone["reason"], gone["result"]["branch"]) == ("no_changes", None)
    record = end(valet, "fake: sh rm .git; git init -q .; echo y > y; git add y")
    assert valet.show(record, "y") == "y\n" and record["result"]["files_changed"] == 1
    broken = end(valet, 'fake: sh echo z > z; g=$(git rev-parse --git-dir); echo bad > "$g/HEAD"')
    assert broken["state"] == "succeeded"
    assert broken["result"]["branch"] or broken["result"]["work_tree"]
    locked = end(valet, 'fake: sh echo w > w; g=$(git rev-parse --git-dir); touch "$g/index.lock"')
    assert valet.show(locked, "w") == "w\n"
    assert stat.S_ISDIR((valet.root / "work").stat().st_mode)


@pytest.mark.parametrize(
    "name",
    ["-dash first.txt", "two  spaces", "ünïcödé ✓", 'quo"te', "new\nline", "back\\slash", "*?[a]"],
)
def test_odd_file_names_are_committed(valet: Valet, name: str, tmp_path: Path) -> None:
    (tmp_path / "name").write_text(name)
    record = end(valet, f'fake: sh n=$(cat {tmp_path}/name; echo .); echo x > "./${{n%.}}"')
    names = git(valet.repo, "ls-tree", "-z", "--name-only", record["result"]["commit"]).split("\0")
    assert name in names


@pytest.mark.parametrize("branch", ["wïth-ümlaut", "a.b/c_d-e", "it's"])
def test_odd_branch_names_work_or_are_refused(valet: Valet, branch: str) -> None:
    git(valet.repo, "branch", branch)
    job = {"repo": REPO, "branch": branch, "markdown_text": "fake: write new.txt x"}
    answer = valet.post_json("/api/v1/jobs", job)
    if answer.status == 201:
        assert valet.await_end(answer.json["job_id"])["result"]["commit"]
    else:
        assert answer.status == 400 and "branch" in answer.detail


@pytest.mark.parametrize("branch", ["-d", "--all", "a b", "a\nb", "@{-1}", "x..y", "a/.b", ".."])
def test_branch_names_that_are_none_are_refused(valet: Valet, branch: str) -> None:
    job = {"repo": REPO, "branch": branch, "markdown_text": "fake: write new.txt x"}
    assert valet.post_json("/api/v1/jobs", job).status == 400


def test_repositories_in_odd_states(valet: Valet) -> None:
    repos = valet.root / "repos" / "nova-rey"
    git(valet.root, "init", "--quiet", "--initial-branch=main", str(repos / "empty"))
    empty = end(valet, "fake: write new.txt x", repo="empty")
    assert empty["reason"] == "workspace_failed" and "no commit yet" in empty["error"]
    git(valet.root, "clone", "--quiet", "--bare", str(valet.repo), str(repos / "bare"))
    bare = end(valet, "fake: write new.txt x", repo="bare")
    assert git(repos / "bare", "show", f"{bare['result']['branch']}:new.txt") == "x"
    git(valet.repo, "checkout", "--quiet", "--detach")
    assert valet.show(end(valet, "fake: write new.txt x"), "new.txt") == "x"
    git(valet.root, "clone", "--quiet", "--depth=1", f"file://{valet.repo}", str(repos / "shallow"))
    shallow = end(valet, "fake: write new.txt x", repo="shallow", branch="dev")
    assert shallow["state"] == "failed" or shallow["result"]["commit"]
    make_repository(repos / "blocked", "codex")  # in the way of codex/...
    blocked = end(valet, "fake: write new.txt x", repo="blocked")
    assert blocked["reason"] == "workspace_failed" and "codex" in blocked["error"]


def test_submodules_stay_links(valet: Valet) -> None:
    inner = make_repository(valet.root / "inner")
    add = ("-c", "protocol.file.allow=always", "submodule", "add", "--quiet")
    git(valet.repo, *add, str(inner), "lib/inner")
    git(valet.repo, "commit", "--quiet", "--message", "submodule")
    record = end(valet, "fake: write new.txt x\nfake: sh echo lost > lib/inner/file")
    names = git(valet.repo, "show", "--format=", "--name-only", record["result"]["commit"])
    assert names == "new.txt\n"
    notes = str(record["result"]["notes"])
    assert "submodules are empty folders" in notes and "submodule lib/inner is not kept" in notes


def test_a_work_tree_that_cannot_be_committed_is_kept(valet: Valet) -> None:
    job_id = valet.submit("fake: write new.txt x\nfake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    objects = valet.repo / ".git" / "objects"
    objects.rename(valet.root / "objects")
    objects.write_text("")
    (valet.repo / "go").touch()
    record = valet.await_end(job_id)
    assert record["state"] == "succeeded" and "is kept in" in record["result"]["publish_error"]
    objects.unlink()
    (valet.root / "objects").rename(objects)
    valet.processes[-1].stop()
    valet.start()
    valet.await_end(valet.submit("fake: say x")["job_id"])
    assert (Path(record["result"]["work_tree"]) / "new.txt").read_text() == "x"


def test_leftovers_are_cleared_at_the_start(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    names = ("0" * 32, "1" * 32)
    for name in names:
        git(valet.repo, "worktree", "add", "--quiet", "--detach", str(valet.root / "work" / name))
    shutil.rmtree(valet.root / "work" / names[1])
    (valet.root / "work" / ("2" * 32)).mkdir()
    (valet.root / "work" / "mine").mkdir()
    (valet.root / "repos" / "nova-rey" / f".pv-clone-{'3' * 32}").mkdir()
    git(valet.repo, "worktree", "add", "--quiet", "--detach", str(valet.root / "operators"))
    valet.start()
    until(lambda: [p.name for p in (valet.root / "work").iterdir()] == ["mine"], "trees cleared")
    until(
        lambda: os.listdir(valet.repo / ".git" / "worktrees") == ["operators"],
        "git's knowledge of them cleared",
    )
    until(lambda: not list((valet.root / "repos").glob("*/.pv-*")), "half a clone cleared")


def test_an_abort_while_the_work_tree_is_filled_makes_no_commit(
    make_valet: Callable[..., Valet], tmp_path: Path
) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(
        f'#!/bin/sh\n[ "$1" != reset ] || {{ touch {tmp_path}/at; sleep 60; }}\n'
        f'exec {shutil.which("git")} "$@"\n'
    )
    slow.chmod(0o755)
    valet = make_valet()
    valet.environ["PATH"] = f"{slow.parent}:{valet.environ['PATH']}"
    valet.start()
    job_id = valet.submit("fake: write x y")["job_id"]
    until((tmp_path / "at").exists, "the checkout")
    assert valet.ask("POST", f"/api/v1/jobs/{job_id}/abort").status == 200
    record = valet.await_end(job_id)
    assert record["state"] == "aborted" and not (record["result"] or {}).get("commit")
    assert git(valet.repo, "branch", "--list", "codex/*") == "" and no_trace_left(valet)


def test_a_server_killed_while_git_prepares_or_publishes(
    origin: Callable[..., tuple[Valet, Path]], tmp_path: Path
) -> None:
    slow = tmp_path / "git"
    real = shutil.which("git")
    slow.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/fast ] || {{ echo x >> {tmp_path}/at; sleep 1; }}\n"
        f'exec {real} "$@"\n'
    )
    slow.chmod(0o755)
    (tmp_path / "fast").touch()
    valet, bare = origin(PV_PUBLISH="push")
    valet.processes[-1].stop()
    valet.environ["PATH"] = f"{tmp_path}:{valet.environ['PATH']}"
    valet.start()
    calls = tmp_path / "at"
    calls.touch()
    for number in range(4):
        steps = f"fake: append ran.txt {number}\nfake: write x.txt x"
        job_id = valet.submit(steps)["job_id"]
        (tmp_path / "fast").unlink()
        for _ in range(3):
            calls.write_text("")
            until(lambda: calls.stat().st_size > 0, "a call of git")
            valet.processes[-1].stop(signal.SIGKILL)
            valet.start()
        (tmp_path / "fast").touch()
        record = valet.await_end(job_id)
        assert (record["state"], record["reason"]) == ("succeeded", "completed"), record
        assert (
            git(bare, "rev-parse", record["result"]["branch"]).strip() == record["result"]["commit"]
        )
    assert (valet.repo / "ran.txt").read_text().split() == ["0", "1", "2", "3"]
    until(lambda: no_trace_left(valet), "nothing left over")
    assert git(valet.repo, "fsck", "--full", "--strict") == ""
