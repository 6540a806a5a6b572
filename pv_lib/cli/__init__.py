"""The command line.

demo      the main job from end to end, in a temporary root
standin   the agent that the demo uses where there is no Codex
"""
