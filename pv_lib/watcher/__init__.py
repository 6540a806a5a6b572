"""The watcher: one thread that polls the inbox and starts jobs.

lock       the lock file: one watcher for a runs root
watcher    the loop: scan, queue, claim, start
leftovers  what a crash left beside the jobs
"""
