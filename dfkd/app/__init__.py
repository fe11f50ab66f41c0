"""The ways in: the command line, pipelines and the demo."""
