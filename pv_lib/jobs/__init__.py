"""Jobs as data and as files: the record, the runs folder, the index over it.

job         the states, the record, its bytes, the ids
options     the table of job options
submission  what a client asks for, and the first record of it
store       the runs folder: paths, whole reads, whole writes
catalogue   all jobs in memory: lists, counts, queue, changes
index       keeps the catalogue up to date with the runs folder
logfile     a job's log, read from its end or from an offset
cache       a small FIFO cache
"""
