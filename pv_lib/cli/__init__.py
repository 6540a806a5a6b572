"""The command line.

main      the table of commands, and errors as text
setup     install, upgrade, uninstall
demo      the main job from end to end, in a temporary root
standin   the agent that the demo uses where there is no Codex
"""
