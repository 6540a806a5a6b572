"""One job from claimed to terminal, in a thread of its own.

runner      the job's way from top to bottom
interrupt   the wait that the server's end or an abort cuts short
supervisor  the running agent: output, abort, timeout, limits
timing      how long the job may take, and which signal is due
logwriter   the agent's raw output into the job's log
delivery    the work into a branch, the prompt into the archive
recorder    the one writer of the job's record
"""
