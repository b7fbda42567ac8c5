"""A synthetic world of look-up chains: data that anyone can draw again, offline, in the formats of the real corpora.

``tasks`` draws questions and answers, ``corpora`` writes them out, ``student`` is the model that learns them,
``ablate`` compares variants of the method on them.
"""
