"""The two loops of ``layer.bptt``, forward over a segment and back over it, as one program for one kind of machine."""
