"""The operating system: files, folders, the journal, the service manager. Knows no job.

files     durable writes, and safe reads of untrusted files
beneath   files below a root, reached without following symbolic links
space     free space on the disks
parent    the parent process runuser, with which the server must end
signals   the signals that end the server, as a pipe
journal   the server's log lines, and its present problems
notify    messages to systemd: ready, alive, stopping
"""
