"""Recorded answers of the teacher, for several views of every image."""
