"""Video files: decoding them to frames and sound, in this process or in a child process."""
