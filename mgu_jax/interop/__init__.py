"""mgu_jax in other frameworks: cells and layers for them, weights in and out, files and exported programs.

    flax_nnx, flax_linen, equinox    a cell for the framework's own loop over time, and a layer that runs ``scan``
    scanned_nnx, scanned_linen       a layer with resets for agents with memory; ``scanned`` is for plain pytrees
    convert                          parameters of one member of the family as those of another that computes the same
    weights                          the names and layouts of Flax, PyTorch and the notebook
    files                            a model in one file, safetensors or npz
    pretrained                       a trained language model that is part of the package
    export, onnx                     a trained model that runs without mgu_jax

Each file imports only its own framework, and importing ``mgu_jax`` imports none of them. README.md in this folder has
an example for each framework.
"""
