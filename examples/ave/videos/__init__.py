"""Video files: decode them to frames and sound, and turn these into features."""
