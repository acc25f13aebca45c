"""From an encoder to maps: whole scenes, window by window."""
