"""Putting Prompt Valet on a machine. Knows no job.

machine   an installed machine: paths, settings, user
steps     each change as a line, dry run, lock
archive   a pv.pyz, read whole, and its place
systemd   units, systemctl, the journal
install   install and uninstall
upgrade   another version in place of the present one
"""
