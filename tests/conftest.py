"""Set up before any test module is imported."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# transformers imports torchaudio where it finds one, and one built for another torch does not load; nothing here needs it
sys.modules.setdefault("torchaudio", None)
