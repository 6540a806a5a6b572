"""The watcher: one thread that looks into the inbox and starts jobs.

lock       the lock file: one watcher for a runs root
queue      the jobs that wait, reconciled with their files
slots      the jobs that run, each in its thread
watcher    the loop: wake, scan, settle, claim, start
leftovers  what a crash left beside the jobs
"""
