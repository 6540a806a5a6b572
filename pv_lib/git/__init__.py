"""Everything that runs git or reads a clone.

command   every call of git, closed to what a repository would have it run
repos     which repositories and branches there are
worktree  a job's work tree: made, committed, removed
publish   what becomes of the work: commit, diff, push, pull request
"""
