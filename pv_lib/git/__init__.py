"""Everything that runs git or reads a clone.

command   every call of git, hardened against the repository's configuration
repos     which repositories and branches there are
locks     what git must not do twice at once
tidy      what the agent left, made fit to commit
fetch     the clone brought up to date, its newest commit
worktree  a job's work tree: made, committed, removed
publish   delivery: commit, diff, push, pull request
"""
