"""The command line: parse, call, render, exit code. Nothing heavy is imported until it is used."""
