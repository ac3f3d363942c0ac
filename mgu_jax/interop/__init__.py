"""At home in other frameworks: cells and layers for their loops, weights in and out, files and exports.

    flax_nnx, flax_linen, equinox    a cell for the framework's own loop over time, and a layer that runs ``scan``
    convert                          from one member of the family to another, where the function stays the same
    weights                          Flax's, PyTorch's and the notebook's names and layouts
    files                            a model in one file: safetensors or npz
    pretrained                       one that comes with the library, and writes
    export, onnx                     a trained model without the code that trained it

Nothing of mgu_jax imports this package, and each of its files imports its framework alone.
"""
