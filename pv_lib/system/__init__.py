"""The machine: files, folders, the journal, the service manager. Knows no job.

files     durable writes, and reads that cannot be tricked
beneath   folders below a root, reached through no symbolic link
space     room on the disks
parent    runuser, with which the server must end
journal   what the server logs, and the problems it has at present
notify    what systemd is told: ready, alive, stopping
"""
