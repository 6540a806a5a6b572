"""One job from claimed to terminal, in a thread of its own.

runner    the whole way, from top to bottom
timing    how long the job may take, and which signal is due when
"""
