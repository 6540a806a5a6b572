"""The way in: from a submission or a dropped file to a durable, queued job.

prompt       a prompt's file as its name and place tell it
frontmatter  the block on top of a prompt
scan         which folders of the inbox have changed
inbox        the queue as files: drop, settle, claim, archive
intake       the checks, the durable file, the first record
"""
