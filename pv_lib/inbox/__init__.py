"""From a submission or a dropped file to a durable, queued job.

prompt       the name and path of a prompt's file
frontmatter  the block on top of a prompt, as bytes
scan         which prompt files there are
inbox        the queue as files: drop, settle, claim, archive
acceptance   the check of a submission and of a prompt's text
rebuild      front matter from a record, a record from front matter
intake       the durable file and the first record; group commit, idempotency
"""
