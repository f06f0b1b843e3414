"""Pictures: sources, packs, and batches drawn on the device that trains.

Importing this is cheap: no torch, Pillow or scikit-learn until a picture is read.
"""

from ganfast.data.lookup import recognise
from ganfast.data.pack import Pack, PackInfo, open_data
from ganfast.data.source import Source

__all__ = ["Pack", "PackInfo", "Source", "open_data", "recognise"]
