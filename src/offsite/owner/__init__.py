"""The model owner's side: make an offer, plug a delta, serve several.

Needs the compressors and the record; the data owner's side never imports it.
"""
