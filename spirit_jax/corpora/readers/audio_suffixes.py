"""Suffixes of audio files."""

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64",
    ".m4a", ".aac", ".mp4", ".webm", ".wma", ".amr",
)  # fmt: skip
"""Suffixes, in lower case, of the files that a folder or glob is searched for. Those of the last line need `av`."""
