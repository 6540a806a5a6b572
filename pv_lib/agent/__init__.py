"""The agent: how it is started, what its output says, how it ends.

process   spawn, adopt, signal, sweep
codex     Codex's command line and events
"""
