"""Entry points: the command line, the Python interface, pipelines and the demo."""
