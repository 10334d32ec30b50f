"""Files, errors, constants, arithmetic and hardware figures, which every other folder builds on.

Nothing here imports another folder of the package.
"""
