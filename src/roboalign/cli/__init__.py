"""The `roboalign` command: one verb a file; a verb parses, builds a config, calls one room function, and prints.

Nothing here is imported by any room. No module of this package imports a room at module level, so that
`roboalign --help` answers at once.
"""
