"""Generation with Spirit LM: prompts of text and speech in, text and speech out."""
