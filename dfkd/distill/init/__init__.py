"""Initialization of a student with layers of its teacher."""
