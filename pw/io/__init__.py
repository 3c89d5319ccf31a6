"""Files, paths, command-line arguments, video, downloads and progress: used by every room, none of it about the method.

Begin with `arguments` (how a command is declared), `files` (atomic writes, hashes) and `paths`.
"""
