"""Language models predict the next token of a stream. Training is truncated BPTT with the state carried along.

The validation part chooses the parameters; without one, the last are the result. The test part is read from its
beginning to its end as one sequence, in windows of equal length that leave out at most two tokens.
"""

import mgu_jax as mgu
from experiments.datasets.published import DataSet
from experiments.harness.learn import Learned, Task, Training, learn
from experiments.harness.measures import Measure
from mgu_jax.training.data import windows


def learn_language(
    name: str,
    config: Training,
    data: DataSet,
    measure: Measure,
    *,
    window: int,
    embedding_size: int,
    quick: int,
    tie: bool = False,
) -> Learned:
    """Train on a text.

    Args:
        name, config: name and flags of the experiment.
        data: the streams.
        measure: what is reported.
        window: T, the number of tokens that a gradient flows through.
        embedding_size: features of a token.
        quick: steps of --quick, in two calls of the compiled loop; the streams are cut short as well.
        tie: whether the embedding reads out as well.
    """
    if config.quick:
        size = config.batch_size * window
        train, valid, test = (
            part and mgu.Stream(part.xs[: size * n], part.targets[: size * n])
            for part, n in ((data.train, quick), (data.valid, 2), (data.test, 2))
        )
        data = data._replace(train=train, valid=valid, test=test)
    epoch = windows(data.train, config.batch_size, window)
    task = Task(
        data.train,
        data.test,
        data.sources,
        input_size=len(data.symbols),
        output_size=len(data.symbols),
        longest=window,
        valid=data.valid,
        measure=measure,
        window=window,
        options=(("readout", "all"), ("embedding_size", embedding_size), *((("tie", True),) if tie else ())),
    )
    steps = config.steps or (quick if config.quick else config.epochs * epoch)
    per_call = max(1, quick // 2 if config.quick else epoch // 4)
    return learn(name, config, task, steps=steps, steps_per_call=per_call, every=1 if config.quick else 4)
