"""Set before anything imports torch."""

import os

# A compiled graph kept from another version of the operators would be taken for this one's.
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
