"""Files of weights: PyTorch, safetensors, NumPy and joblib pickles, Hugging Face directories and Orbax."""
