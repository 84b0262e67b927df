"""What ``ave_cmran.py`` is assembled from: audio-visual event localisation with CMRAN on the AVE dataset."""
