"""Files, paths, command-line arguments, video, downloads and progress, for all packages; nothing about the method.

Begin with `arguments` (how a command is declared), `files` (atomic writes, hashes) and `paths`.
"""
