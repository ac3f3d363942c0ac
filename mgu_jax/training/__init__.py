"""Training.

To read in this order: ``data``, ``step``, ``batch``, ``evaluate``, ``loop``, then ``fit``, ``sweep``, ``halving``.
"""
