"""Video files: decode them, turn them into features with a network for frames and one for sound, and find events.

- ``files``: the videos that files and directories name
- ``containers``, ``decoding``, ``sound``, ``sampling``: a video as the frames and the sound of each second
- ``isolation``: the same in a child process with limits of time and memory
- ``backbones``: the networks by name, or a function of yours; ``vgg19``, ``resnet152``, ``efficientnet_lite``,
  ``vggish``, ``aisfx``; ``inputs``, ``mel`` and ``weights``: their input, log-mel spectra and files
- ``extraction``: the features of a video, second by second; ``assembly``: those of many videos as a dataset
- ``prediction``: the events of videos while their features are extracted; ``progress``: what is done, and what is left
- ``procedural``: clips of a moving square and a tone, and a network for sound that needs no weights
"""
