"""The settings: one table, and the only reading of the environment.

config    the table, the checks, the validated values
"""
