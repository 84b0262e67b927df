"""What ``ave_cmran.py`` is assembled from: audio-visual event localisation with CMRAN on the AVE dataset.

- the set: ``data``; in files, ``layout``, ``storage``, ``release``, ``prepared``, ``preparing``, ``examination``,
  ``inspection``, ``reading``; without any, ``procedural``; without labels, ``unlabelled``
- the network: ``model``; kept and found again, ``hub``, ``pretrained``, ``official``
- a run: ``accelerating``, ``loading``, ``training``, ``checkpoints``, ``stopwatch``, ``tensorboard_log``
- what it says: ``evaluation``, ``prediction``, ``metrics``, ``reporting``, ``results``, ``tables``, ``charts``,
  ``plots``
- the subcommands: ``commands``
"""
