"""The commands of the ``pathways`` program, one function each; cli.py puts them together."""
