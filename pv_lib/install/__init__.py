"""Putting Prompt Valet on a machine. Knows no job.

machine   what an installed one consists of
install   install and uninstall
upgrade   another version in the place of the present one
"""
