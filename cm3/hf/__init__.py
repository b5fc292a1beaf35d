"""transformers and the hub: model folders, conversion, Auto classes, remote code."""
