"""A folder of pictures to captions: listing, destinations, journal, schedule; yields events."""
