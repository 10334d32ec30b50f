"""What every other folder builds on: files, errors, constants, arithmetic, hardware figures. Imports nothing of the package."""
