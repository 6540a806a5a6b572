"""The agent: the program that does a job, and the process it runs in.

transcript  raw output to log text, facts and verdict; what all agents share
adapter     the protocol of an agent
codex       Codex: command line, environment, events
registry    the table of agents
program     finds an agent's executable
launcher    the protocol of the process behind an agent
sweep       finds and ends every process of a job
process     the local launcher
"""
