"""The settings: one table, and the only reading of the environment.

values    how the text of a setting is parsed
config    the table, the checks, the validated settings
"""
