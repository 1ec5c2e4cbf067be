"""Captions for many images: listing, pipeline, destinations, journal; yields events."""
