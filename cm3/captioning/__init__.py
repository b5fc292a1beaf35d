"""Captions for many images: folders, tables, shards."""
