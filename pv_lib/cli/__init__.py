"""The command line.

main      the entry point of every command, and errors as text
commands  the table of commands, and the parser made from it
setup     install, upgrade, uninstall
demo      the main job from end to end, in a temporary root
standin   the agent that the demo uses where there is no Codex
"""
