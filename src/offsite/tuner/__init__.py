"""The data owner's side: tune an offer, or return an adapter that another trainer made.

Needs nothing but the offer: it never imports the compressors or the owner's side.
"""
