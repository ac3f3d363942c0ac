"""The mathematics of one recurrent layer.

To read in this order: ``params`` (notation), ``family`` (the cells), ``cell`` (equations 1 to 11), ``step``, ``bptt``
(equations 12 to 15) with ``segments``, ``parallel``, ``newton`` (equations 20 to 23) with ``affine``. Beside them:
``initial``, ``products``, ``layer_norm``, ``noise``. README.md in this folder is about all steps at once.
"""
