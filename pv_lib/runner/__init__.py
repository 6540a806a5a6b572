"""One job from claimed to terminal, in a thread of its own.

runner     the whole way, from top to bottom
logwriter  the agent's raw output into the job's log
timing     how long the job may take, and which signal is due when
"""
