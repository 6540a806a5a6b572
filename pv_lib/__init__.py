"""Prompt Valet: the box in the corner that does your coding jobs."""
